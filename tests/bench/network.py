"""Network namespaces round a bridge: for workers that stand on hosts of their own.

    this machine ── veth ── hub: bridge, servers, receivers
                             ├── veth ── worker 1
                             └── veth ── worker 2 …

A sleeping process holds each namespace. All but one end of one veth pair lies in such namespaces, and that end goes
with the other, so Linux removes all of it even when the benchmark is killed. The addresses are those of RFC 2544 for
benchmarks, which the address policy refuses unless they are allowed. Whatever cannot be had here raises `NoNetwork`.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.lab.worker import environment
from webhooks.errors import WebhooksError
from webhooks.local.processes import kill_group, spawn
from webhooks.local.servers import LOOPBACK

#: Not on everybody's PATH.
_MORE_FOLDERS = "/usr/sbin:/sbin"
#: Last parts of addresses: of the bridge, of this machine, of the first worker.
_HUB, _HERE, _FIRST = 1, 2, 10
#: Without an address of its own a bridge takes the lowest of its ports', which changes as ports are added. Hosts that
#: know the one before would send to it in vain, for up to a minute.
BRIDGE_ADDRESS = "02:00:00:00:00:01"
#: Seconds for one command.
_SOON_S = 10.0


class NoNetwork(WebhooksError):
    """A row cannot be measured here, for lack of a system's feature; the text is one line with the reason."""


@dataclass(frozen=True, slots=True)
class Place:
    #: The address that servers and receivers there listen on.
    address: str
    #: Before the command line of a program that runs there.
    prefix: tuple[str, ...] = ()


#: This machine's loopback.
LOCAL = Place(LOOPBACK)


def find_tools(*names: str) -> dict[str, str]:
    """Return the paths of programs that work with namespaces."""
    found = {name: shutil.which(name) or shutil.which(name, path=_MORE_FOLDERS) for name in names}
    if missing := [name for name, path in found.items() if path is None]:
        raise NoNetwork(f"no namespace can be made without {' and '.join(missing)}: install iproute2, util-linux")
    if os.geteuid() != 0:
        raise NoNetwork("only root can make namespaces: run it as root")
    return {name: path for name, path in found.items() if path is not None}


class Network:
    def __init__(self, on_close: ExitStack) -> None:
        self._on_close = on_close
        self._tools = find_tools("ip", "unshare", "nsenter", "sleep")
        number = os.getpid()
        # Runs at the same time have numbers near each other.
        self._net = f"198.{18 + number // 256 % 2}.{number % 256}"
        self._workers = 0
        holder = self._hold()
        self.hub = self._place(holder, _HUB)
        link = f"bench{number}"
        self._ip("link", "add", link, "type", "veth", "peer", "name", "here", "netns", str(holder))
        on_close.callback(self._remove, link)
        self._ip("address", "add", f"{self._net}.{_HERE}/24", "dev", link)
        self._ip("link", "set", link, "up")
        self._ip("link", "add", "bridge", "address", BRIDGE_ADDRESS, "type", "bridge", at=self.hub)
        self._open(self.hub, "bridge")
        self._ip("link", "set", "here", "master", "bridge", "up", at=self.hub)

    def add_worker(self) -> Place:
        holder, device = self._hold(), f"w{self._workers}"
        place = self._place(holder, _FIRST + self._workers)
        self._workers += 1
        self._ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", str(holder), at=self.hub)
        self._ip("link", "set", device, "master", "bridge", "up", at=self.hub)
        self._open(place, "eth0")
        return place

    def _open(self, place: Place, device: str) -> None:
        self._ip("link", "set", "lo", "up", at=place)
        self._ip("address", "add", f"{place.address}/24", "dev", device, at=place)
        self._ip("link", "set", device, "up", at=place)

    def _place(self, holder: int, number: int) -> Place:
        return Place(f"{self._net}.{number}", (self._tools["nsenter"], f"--net=/proc/{holder}/ns/net"))

    def _hold(self) -> int:
        """Make a namespace; return the process that holds it."""
        argv = [self._tools["unshare"], "--net", self._tools["sleep"], "infinity"]
        process = spawn(argv, env=environment(), stdout=subprocess.PIPE)
        assert process.stdout is not None
        self._on_close.callback(process.wait)
        self._on_close.callback(kill_group, process)
        self._on_close.callback(process.stdout.close)
        deadline, ours = time.monotonic() + _SOON_S, Path("/proc/self/ns/net").readlink()
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):  # it has just ended
                if Path(f"/proc/{process.pid}/ns/net").readlink() != ours:
                    return process.pid
            time.sleep(0.01)
        said = process.stdout.read().decode(errors="replace").strip() if process.poll() is not None else "it hangs"
        raise NoNetwork(f"no network namespace can be made here: {said or 'unshare failed'}")

    def _remove(self, link: str) -> None:
        """Remove the end that is here at once; by itself it goes some time after its namespace."""
        with suppress(NoNetwork):
            self._ip("link", "delete", link)

    def _ip(self, *arguments: str, at: Place = LOCAL) -> None:
        """Run ``ip`` somewhere."""
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
def open_network() -> Iterator[Network]:
    """Make a bridge, and remove it and its namespaces when the context ends; programs in them must have ended."""
    with ExitStack() as stack:
        yield Network(stack)
