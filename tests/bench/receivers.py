"""Who takes the requests of a run: nginx where it can, else our own `receiver`.

Owns their processes' descriptions and ports; `stage`'s supervisor runs them. Called by `stage`.
"""

import json
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.bench.crew import SOON_S, environment
from tests.bench.network import Place
from tests.bench.nginx import Nginx, find_nginx
from tests.bench.plan import DELAY_S, ENDPOINTS
from webhooks.local.processes import Program, Supervisor
from webhooks.local.servers import free_port

_PROGRAM = Path(__file__).parent / "receiver.py"
#: The receivers' paths: see `receiver`.
INSTANT, SLOW, HANG = "/", "/slow", "/hang"


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver that runs: the same paths at each of its ports."""

    #: ``nginx 1.22.1``, ``own``.
    kind: str
    address: str
    ports: tuple[int, ...]
    pid: int

    def url(self, index: int, path: str) -> str:
        """Return the URL of an endpoint."""
        return f"http://{self.address}:{self.ports[index % len(self.ports)]}{path}"


class Receivers:
    """The receivers of a run, each started when it is first asked for."""

    def __init__(self, place: Place, folder: Path, supervisor: Supervisor) -> None:
        self._place = place
        self._folder = folder
        self._supervisor = supervisor
        self._nginx = find_nginx()
        self._running: dict[str, Receiver] = {}

    def version(self) -> str:
        """Return what the nginx is, and whether it can answer late: ``1.22.1 with echo``, ``none``."""
        if self._nginx is None:
            return "none"
        return f"{self._nginx.version} {'with' if self._nginx.echo else 'without'} echo"

    def find(self, *paths: str) -> Receiver:
        """Return a receiver that has these paths: nginx where it can, else our own."""
        if self._nginx is not None and (self._nginx.echo or set(paths) <= {INSTANT}):
            if "nginx" not in self._running:
                self._running["nginx"] = self._start_nginx(self._nginx)
            return self._running["nginx"]
        return self.own()

    def own(self) -> Receiver:
        """Return the receiver that notes what comes."""
        if "own" not in self._running:
            self._running["own"] = self._start_own()
        return self._running["own"]

    def arrivals(self) -> list[tuple[int, float, float]]:
        """Return what came to our own receiver since the last time: number, sent at, arrived at."""
        receiver = self.own()
        with socket.create_connection((receiver.address, receiver.ports[0]), timeout=SOON_S) as link:
            link.sendall(b"POST /arrivals HTTP/1.1\r\n\r\n")
            data = b""
            while True:
                head, separator, body = data.partition(b"\r\n\r\n")
                if separator and len(body) >= int(head.rpartition(b": ")[2]):
                    return [(number, sent_at, at) for number, sent_at, at in json.loads(body)]
                data += link.recv(1 << 20)

    def _start_nginx(self, nginx: Nginx) -> Receiver:
        folder = self._folder / "nginx"
        folder.mkdir()
        ports = tuple(free_port() for _ in range(ENDPOINTS))
        (folder / "nginx.conf").write_text(nginx.configuration(self._place.address, ports, DELAY_S))
        pid_path = folder / "nginx.pid"
        self._supervisor.start(
            Program(
                "nginx",
                [*self._place.prefix, *nginx.command(folder)],
                environment(),
                cwd=folder,
                ready=lambda: pid_path.exists() and bool(pid_path.read_text().strip()),
                log_path=self._folder / "nginx.log",
                restart=False,
            )
        )
        return Receiver(f"nginx {nginx.version}", self._place.address, ports, int(pid_path.read_text()))

    def _start_own(self) -> Receiver:
        report = self._folder / "receiver.json"
        argv = [*self._place.prefix, sys.executable, "-I", str(_PROGRAM)]
        argv += [str(report), self._place.address, str(ENDPOINTS), str(DELAY_S)]
        log_path = self._folder / "receiver.log"
        self._supervisor.start(
            Program("receiver", argv, environment(), ready=report.exists, log_path=log_path, restart=False)
        )
        told = json.loads(report.read_text())
        return Receiver("own", self._place.address, tuple(told["ports"]), told["pid"])
