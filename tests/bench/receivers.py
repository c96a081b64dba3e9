"""The receivers of a run: nginx if it is installed and has the paths, otherwise our own `receiver`."""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.bench.network import NoNetwork, Place
from tests.bench.plan import DELAY_S, ENDPOINTS
from tests.bench.workers import SOON_S, Troupe
from tests.lab.worker import environment
from webhooks.local.processes import Program
from webhooks.local.servers import free_port

_ROOT = Path(__file__).parents[2]
#: Paths: answer at once, after `DELAY_S`, after `NEAR_S`, never.
INSTANT, SLOW, NEAR, HANG = "/", "/slow", "/near", "/hang"
#: Seconds of latency of an endpoint that is near.
NEAR_S = 0.005
#: In Debian's ``libnginx-mod-http-echo``, for late answers, which nginx itself cannot give.
_ECHO = "ngx_http_echo_module.so"
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@dataclass(frozen=True, slots=True)
class Receiver:
    """A running receiver, with the same paths at each of its ports."""

    address: str
    ports: tuple[int, ...]
    pid: int

    def url(self, index: int, path: str) -> str:
        return f"http://{self.address}:{self.ports[index]}{path}"


@dataclass(frozen=True, slots=True)
class Nginx:
    path: Path
    version: str
    #: The module for late answers; None if it is not installed.
    echo: Path | None

    def configuration(self, address: str, ports: Sequence[int], *, is_tls: bool = False) -> str:
        """Return its configuration: one process, at one address, with all files in its own folder.

        With `is_tls` these are ``cert.pem`` and ``key.pem``, too.
        """
        tls = " ssl" if is_tls else ""
        listen = "\n".join(f"    listen {address}:{port}{tls} backlog=4096;" for port in ports)
        temporary = "\n".join(f"  {name}_temp_path {name};" for name in _TEMPORARY)
        late = "\n".join(
            f"    location {path} {{ echo_sleep {seconds:g}; echo -n ok; }}"
            for path, seconds in ((SLOW, DELAY_S), (NEAR, NEAR_S), (HANG, 86400))
        )
        return f"""{f"load_module {self.echo};" if self.echo else ""}
daemon off;
# One process, which Linux ends with its parent.
master_process off;
pid nginx.pid;
error_log error.log;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
{temporary}
  access_log off;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  client_body_buffer_size 1m;
  client_max_body_size 1m;
  tcp_nodelay on;
  server {{
{listen}
{"    ssl_certificate cert.pem; ssl_certificate_key key.pem;" if is_tls else ""}
    location / {{ return 200 ok; }}
{late if self.echo else ""}
  }}
}}
"""


def find_nginx() -> Nginx | None:
    """Find an nginx; None if there is none that runs."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")  # not on everybody's PATH
    if found is None:
        return None
    try:
        done = subprocess.run([found, "-V"], capture_output=True, text=True, errors="replace", timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"nginx/(\S+)", done.stderr)
    if done.returncode or not version:
        return None
    modules = re.search(r"--modules-path=(\S+)", done.stderr)
    echo = Path(modules[1]) / _ECHO if modules else None
    return Nginx(Path(found), version[1], echo if echo and echo.is_file() else None)


class Receivers:
    """Each receiver starts when it is first asked for."""

    def __init__(self, place: Place, folder: Path, troupe: Troupe) -> None:
        self._place = place
        self._folder = folder
        self._troupe = troupe
        self._nginx = find_nginx()
        self._running: dict[str, Receiver] = {}

    def version(self) -> str:
        """Return the version of nginx, and whether it can answer late: ``1.22.1 with echo``, ``none``."""
        if self._nginx is None:
            return "none"
        return f"{self._nginx.version} {'with' if self._nginx.echo else 'without'} echo"

    def pids(self) -> list[int]:
        return [receiver.pid for receiver in self._running.values()]

    def find(self, *paths: str) -> Receiver:
        """Return a receiver that has these paths: nginx if it can, otherwise our own."""
        if self._nginx is None or (not self._nginx.echo and set(paths) != {INSTANT}):
            return self.own()
        if "nginx" not in self._running:
            self._running["nginx"] = self._start_nginx(self._nginx, ENDPOINTS)
        return self._running["nginx"]

    def own(self) -> Receiver:
        """Return the receiver that notes when requests arrive."""
        if "own" not in self._running:
            report = self._folder / "receiver.json"
            argv = [*self._place.prefix, sys.executable, "-m", "tests.bench.receiver", str(report), self._place.address]
            argv += [str(ENDPOINTS), str(DELAY_S)]
            self._start("receiver", argv, report)
            told = json.loads(report.read_text())
            self._running["own"] = Receiver(self._place.address, tuple(told["ports"]), told["pid"])
        return self._running["own"]

    def arrivals(self) -> list[tuple[int, float, float]]:
        """Return what came to our own receiver since the last call: number, sent at, arrived at."""
        receiver = self.own()
        with socket.create_connection((receiver.address, receiver.ports[0]), timeout=SOON_S) as link:
            link.sendall(b"POST /arrivals HTTP/1.1\r\n\r\n")
            data = b""
            while True:
                head, separator, body = data.partition(b"\r\n\r\n")
                if separator and len(body) >= int(head.rpartition(b": ")[2]):
                    return [(number, sent_at, at) for number, sent_at, at in json.loads(body)]
                data += link.recv(1 << 20)

    def open_tls(self, certificate: trustme.LeafCert) -> int:
        """Start a receiver with TLS; return its port.

        Raises:
            NoNetwork: it would have no late answers.
        """
        if self._nginx is None or self._nginx.echo is None:
            raise NoNetwork("it needs nginx with the echo module")
        receiver = self._running["tls"] = self._start_nginx(self._nginx, 1, certificate)
        return receiver.ports[0]

    def _start_nginx(self, nginx: Nginx, count: int, certificate: trustme.LeafCert | None = None) -> Receiver:
        name = "nginx" if certificate is None else "nginx-tls"
        folder, ports = self._folder / name, tuple(free_port() for _ in range(count))
        folder.mkdir()
        if certificate is not None:
            certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
            certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
        text = nginx.configuration(self._place.address, ports, is_tls=certificate is not None)
        (folder / "nginx.conf").write_text(text)
        argv = [*self._place.prefix, str(nginx.path), "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"]
        pid_path = folder / "nginx.pid"
        self._start(name, argv, pid_path)
        return Receiver(self._place.address, ports, int(pid_path.read_text()))

    def _start(self, name: str, argv: Sequence[str], says: Path) -> None:
        """Start a program, and wait until it has written a file."""
        log_path = self._folder / f"{name}.log"
        self._troupe.start(
            Program(
                name,
                argv,
                environment(),
                _ROOT,
                ready=lambda: says.exists() and bool(says.read_text().strip()),
                log_path=log_path,
                restart=False,
            )
        )
