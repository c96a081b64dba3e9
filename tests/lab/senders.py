"""What tests of the sender share: its settings, how they look at an answer, and a sender whose memory is measured."""

import json
import queue
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.receiver import Receiver
from webhooks.errors import ErrorKind
from webhooks.sender import Answer, OutgoingRequest, Resolver, Sender

LOOPBACK = (ip_network("127.0.0.0/8"),)

#: A short total deadline, and how far beyond it an answer may come on a busy machine.
TOTAL_S = 0.5
SLACK_S = 5.0

MakeSender = Callable[..., Sender]


def new_sender(**changes: Any) -> Sender:
    """Make a sender that may reach this machine."""
    settings: dict[str, Any] = {
        "allowed_networks": LOOPBACK,
        "connect_timeout_s": 5,
        "total_timeout_s": 10,
        "max_response_bytes": 1000,
        "ca_bundle": None,
        "pool_size": 4,
    }
    return Sender(**{**settings, **changes})


def assert_failed(answer: Answer, kind: ErrorKind, text: str) -> None:
    """Check that an attempt ended without a response, and how it says so."""
    assert (answer.status, answer.error_kind, answer.text, answer.cut) == (None, kind, text, False)


def keep_connections(sender: Sender, receiver: Receiver, count: int) -> None:
    """Have a sender keep connections to a receiver, whose answers must take some time."""
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    sender.submit_many([(OutgoingRequest(receiver.url, {}, b""), answers.put)] * count)
    assert [answers.get(timeout=10).status for _ in range(count)] == [200] * count
    assert receiver.connections == count


def resolving_to(*ips: str, calls: list[str] | None = None) -> Resolver:
    """Return a resolver that knows one answer to every name."""

    def look_up(host: str, port: int) -> list[Any]:
        if calls is not None:
            calls.append(host)
        return [answer for ip in ips for answer in socket.getaddrinfo(ip, port, type=socket.SOCK_STREAM)]

    return Resolver(look_up)


# --- memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """An answer, and what it cost."""

    status: int | None
    #: An `ErrorKind`; ``None`` when a response came. Otherwise what `Sender.post` raised, which it never should.
    kind: str | None
    text: str
    cut: bool
    seconds: float
    #: The most that Python and zlib had allocated during the attempt, beyond what they had before.
    peak_bytes: int


class MeasuredSender:
    """A sender in a process of its own, so that a receiver's memory is not taken for its."""

    def __init__(self, total_timeout_s: float, ca_file: Path | None = None) -> None:
        command = [sys.executable, "-m", "tests.lab.senders", str(total_timeout_s), str(ca_file or "")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )

    def post(self, url: str) -> Measured:
        """Send one request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(url + "\n")
        self._process.stdin.flush()
        return Measured(**json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()


def _measure(total_timeout_s: float, ca_file: str) -> None:
    sender = new_sender(total_timeout_s=total_timeout_s, ca_bundle=Path(ca_file) if ca_file else None)
    tracemalloc.start()
    for line in sys.stdin:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        started = time.monotonic()
        try:
            answer = sender.post(line.rstrip("\n"), {}, b"{}")
            result = (answer.status, answer.error_kind, answer.text, answer.cut)
        except Exception as error:
            result = (None, f"raised {error!r}", "", False)
        seconds = time.monotonic() - started
        _, peak = tracemalloc.get_traced_memory()
        got = Measured(*result, seconds, peak - before)
        print(json.dumps({name: getattr(got, name) for name in Measured.__slots__}), flush=True)


if __name__ == "__main__":
    _measure(float(sys.argv[1]), sys.argv[2])
