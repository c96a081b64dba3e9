"""Where programs of a run stand: on this machine, or each in a network namespace of its own, with a bridge between.

    this machine ── veth ── hub: bridge, servers, receivers
                             ├── veth ── worker 1
                             └── veth ── worker 2 …

Owns namespaces, bridge and veth pairs. A namespace is held by one process that sleeps, and goes with it. All but one
end of one veth pair lies in such namespaces, and that end goes with the other; so Linux removes all of it even when
the benchmark is killed. Addresses are of the range that RFC 2544 sets aside for benchmarks, which the guard refuses
unless it is allowed, as it does with private ones. Called by `sizing`.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tests.bench.crew import Troupe, environment
from webhooks.errors import CannotStart, WebhooksError
from webhooks.local.processes import Program, Supervisor
from webhooks.local.servers import LOOPBACK

_TOOLS = ("ip", "unshare", "nsenter", "sh", "sleep")
#: Not on everybody's PATH.
_MORE_FOLDERS = "/usr/sbin:/sbin"
#: Places in the network: of the bridge, of this machine, and of the first worker.
_HUB, _HERE, _FIRST = 1, 2, 10
#: Without an address of its own a bridge takes the lowest of its ports', which changes as ports are added. Hosts that
#: know the one before would send to it in vain, for up to a minute.
BRIDGE_ADDRESS = "02:00:00:00:00:01"
#: Seconds for one command.
_SOON_S = 10.0
#: Says which process it is, then holds its namespace.
_HOLD = 'echo $$ >"$0" && exec sleep infinity'


class NoNetwork(WebhooksError):
    """Namespaces cannot be made here; the text is one line that says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where programs run."""

    #: The address that servers and receivers there listen on.
    address: str
    #: What stands before the command line of a program that is to run there.
    prefix: tuple[str, ...] = ()


#: This machine, as far as it can be reached from nowhere else.
LOCAL = Place(LOOPBACK)


class Network:
    """Namespaces round a bridge; made by `open_network`."""

    def __init__(self, folder: Path, supervisor: Supervisor) -> None:
        self._folder = folder
        self._supervisor = supervisor
        self._tools = _find_tools()
        number = os.getpid()
        # Runs beside each other have numbers that are near to each other.
        self._net = f"198.{18 + number // 256 % 2}.{number % 256}"
        self._link = f"bench{number}"
        self._workers = 0
        self.hub = LOCAL

    def open(self) -> None:
        """Make the bridge, and a way to it from here."""
        hub = self._hold("hub")
        self.hub = self._place(hub, _HUB)
        self._ip("link", "add", self._link, "type", "veth", "peer", "name", "here", "netns", str(hub))
        self._ip("address", "add", f"{self._net}.{_HERE}/24", "dev", self._link)
        self._ip("link", "set", self._link, "up")
        self._ip("link", "add", "bridge", "address", BRIDGE_ADDRESS, "type", "bridge", at=self.hub)
        self._open(self.hub, "bridge")
        self._ip("link", "set", "here", "master", "bridge", "up", at=self.hub)

    def add_worker(self) -> Place:
        """Make a namespace for one worker."""
        number = self._workers
        self._workers += 1
        holder = self._hold(f"net{number}")
        place = self._place(holder, _FIRST + number)
        self._ip("link", "add", f"w{number}", "type", "veth", "peer", "name", "eth0", "netns", str(holder), at=self.hub)
        self._ip("link", "set", f"w{number}", "master", "bridge", "up", at=self.hub)
        self._open(place, "eth0")
        return place

    def close(self) -> None:
        """Remove the end that is here at once: without this it goes some time after its namespace."""
        with suppress(NoNetwork):  # then it was not made
            self._ip("link", "delete", self._link)

    def _open(self, place: Place, device: str) -> None:
        self._ip("link", "set", "lo", "up", at=place)
        self._ip("address", "add", f"{place.address}/24", "dev", device, at=place)
        self._ip("link", "set", device, "up", at=place)

    def _place(self, holder: int, number: int) -> Place:
        return Place(f"{self._net}.{number}", (self._tools["nsenter"], f"--net=/proc/{holder}/ns/net"))

    def _hold(self, name: str) -> int:
        """Make a namespace; return the process that holds it."""
        path = self._folder / f"{name}.pid"
        argv = [self._tools["unshare"], "--net", self._tools["sh"], "-c", _HOLD, str(path)]
        program = Program(
            name,
            argv,
            environment(),
            ready=lambda: path.exists() and path.read_text().endswith("\n"),
            log_path=self._folder / f"{name}.log",
            restart=False,
        )
        try:
            self._supervisor.start(program, ready_within_s=_SOON_S)
        except CannotStart:
            written = program.log_path.read_text().strip() if program.log_path and program.log_path.exists() else ""
            raise NoNetwork(f"no network namespace can be made here: {written or 'unshare failed'}") from None
        return int(path.read_text())

    def _ip(self, *arguments: str, at: Place = LOCAL) -> None:
        """Run ``ip`` somewhere.

        Raises:
            NoNetwork: it failed.
        """
        command = f"ip {' '.join(arguments)}"
        try:
            done = subprocess.run(
                [*at.prefix, self._tools["ip"], *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SOON_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise NoNetwork(f"no network namespaces can be joined here: {command}: {error}") from None
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise NoNetwork(f"no network namespaces can be joined here: {command}: {said}")


@contextmanager
def open_network(folder: Path, screen: TextIO) -> Iterator[Network]:
    """Make a bridge with nobody at it yet, and remove it and what was added when the context ends, however it does.

    Whatever runs in the namespaces has to have ended by then.

    Args:
        folder: for files of its own.
        screen: gets what the supervisor says.

    Raises:
        NoNetwork: it cannot be made here.
    """
    with Troupe(screen) as troupe:
        network = Network(folder, troupe)
        try:
            network.open()
            yield network
        finally:
            network.close()


def _find_tools() -> dict[str, str]:
    found = {name: shutil.which(name) or shutil.which(name, path=_MORE_FOLDERS) for name in _TOOLS}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise NoNetwork(
            f"no network namespace can be made without {' and '.join(missing)}: install iproute2, util-linux"
        )
    if os.geteuid() != 0:
        raise NoNetwork("network namespaces are root's alone to make: run it as root")
    return {name: path for name, path in found.items() if path is not None}
