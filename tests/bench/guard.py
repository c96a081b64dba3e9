"""What the guard costs: deliveries per second with it, and with it taken away.

``python -m tests.bench.guard [--seconds 10] [--json]`` posts 2 KB to a receiver in a process of its own, in short
rounds that take turns, so that whatever else the machine does meets both alike. Medians are printed, and beside
deliveries per second the CPU time that one takes in the sending process, which other processes change less. Taken away,
a connection is opened as `socket.create_connection` does it: look-up in the calling thread, and nothing judged.

The first row measures the guard against itself: how far its ratio is from 1 is what the machine alone does. The bar is
the ratio of the next two, the way that connections are used: at least 0.90. The others open a connection per request,
so that each is looked up and judged; the last by a name out of ``/etc/hosts``, which takes a look-up thread as well.
"""

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any, NamedTuple

from webhooks.sender import Sender
from webhooks.sender import connection as connection_module
from webhooks.sender.connection import Connector
from webhooks.sender.deadline import Attempt, Phase
from webhooks.sender.resolver import Endpoint

#: The least ratio of a row that keeps its connections.
BAR = 0.90

_BODY = b"x" * 2048
_HEADERS = {"Content-Type": "application/json", "webhook-id": "msg_1"}
#: Seconds of one round: long enough to count, short enough that the machine is as busy in the next.
_ROUND_S = 0.05
#: Requests before the first round, to have everything loaded.
_WARM_UP = 200


class Case(NamedTuple):
    """One row."""

    name: str
    host: str
    threads: int
    keeps: bool
    #: Whether it is measured against sending without the guard, or against itself.
    is_compared: bool = True


class Round(NamedTuple):
    """What one round came to."""

    per_second: float
    cpu_us: float
    opened_per_1000: float


CASES = (
    Case("the guard against itself", "127.0.0.1", 1, keeps=True, is_compared=False),
    Case("kept connections, 1 thread", "127.0.0.1", 1, keeps=True),
    Case("kept connections, 4 threads", "127.0.0.1", 4, keeps=True),
    Case("closed each time, 1 thread", "127.0.0.1", 1, keeps=False),
    Case("closed each time, 4 threads", "127.0.0.1", 4, keeps=False),
    Case("closed each time, by name, 1 thread", "localhost", 1, keeps=False),
)


class _Unguarded(Connector):
    """Connects to what a host name leads to, whatever that is."""

    def open(self, attempt: Attempt) -> Any:
        target = attempt.target
        with attempt.timing(Phase.LOOKUP):
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        with attempt.timing(Phase.CONNECT):
            endpoints = tuple(Endpoint(int(family), sockaddr) for family, _, _, _, sockaddr in found)
            give_up_at = time.monotonic() + attempt.connect_timeout_s
            return connection_module._first_that_works(
                endpoints, give_up_at, lambda endpoint, share_s: connection_module._connect(endpoint, attempt, share_s)
            )


class _Count:
    """Connections that were opened; counting costs both sides the same."""

    opened = 0


def _open_and_count(
    *arguments: Any, open_socket: Callable[..., socket.socket] = connection_module._open_socket
) -> socket.socket:
    _Count.opened += 1
    return open_socket(*arguments)


def make_sender(connector: type[Connector], threads: int) -> Sender:
    """Make a sender whose connections come from this class."""
    connection_module._open_socket = _open_and_count
    made = Sender(
        allowed_networks=(ip_network("127.0.0.0/8"), ip_network("::1/128")),
        connect_timeout_s=5,
        total_timeout_s=15,
        max_response_bytes=1000,
        ca_bundle=None,
        pool_size=threads,
    )
    if connector is not Connector:
        adapter = made._adapter
        adapter.connector = connector(adapter.connector._allowed_networks, adapter.connector._resolver, None)
    return made


def run_round(sender: Sender, url: str, threads: int) -> Round:
    """Post with so many threads."""
    counts = [0] * threads
    before = _Count.opened
    end = time.perf_counter() + _ROUND_S

    def post(number: int) -> None:
        while time.perf_counter() < end or not counts[number]:  # one at least, however busy the machine is
            answer = sender.post(url, _HEADERS, _BODY)
            if answer.status != 200:
                raise RuntimeError(f"no answer: {answer.text}")
            counts[number] += 1

    started, cpu_started = time.perf_counter(), time.process_time()
    _in_threads(post, threads)
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    total = sum(counts)
    return Round(total / elapsed, 1e6 * cpu / total, 1000 * (_Count.opened - before) / total)


def _in_threads(work: Callable[[int], None], threads: int) -> None:
    if threads == 1:
        work(0)
        return
    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """Return the figures of one row."""
    argv = [sys.executable, "-m", "tests.bench.guard", "--serve", "keep" if case.keeps else "close"]
    receiver = subprocess.Popen(argv, stdout=subprocess.PIPE)
    guarded = make_sender(Connector, case.threads)
    unguarded = make_sender(_Unguarded if case.is_compared else Connector, case.threads)
    try:
        assert receiver.stdout is not None
        url = f"http://{case.host}:{int(receiver.stdout.readline())}/hook"
        for sender in (guarded, unguarded):
            for _ in range(_WARM_UP):
                sender.post(url, _HEADERS, _BODY)
        on: list[Round] = []
        off: list[Round] = []
        for number in range(max(2, round(seconds / _ROUND_S / 2))):
            pair = [(guarded, on), (unguarded, off)]
            for sender, into in pair if number % 2 else reversed(pair):
                into.append(run_round(sender, url, case.threads))
    finally:
        guarded.close()
        unguarded.close()
        receiver.kill()
        receiver.wait()
    return {
        "case": case.name,
        "guarded_per_s": statistics.median(one.per_second for one in on),
        "unguarded_per_s": statistics.median(one.per_second for one in off),
        # Of neighbours in time, so that a slow moment counts on both sides.
        "ratio": statistics.median(a.per_second / b.per_second for a, b in zip(on, off, strict=True)),
        "guarded_cpu_us": statistics.median(one.cpu_us for one in on),
        "unguarded_cpu_us": statistics.median(one.cpu_us for one in off),
        "opened_per_1000": statistics.median(one.opened_per_1000 for one in on),
    }


# --- the receiver ----------------------------------------------------------------------------------------------------


class _Answering(asyncio.Protocol):
    """Answers each request of one connection at once."""

    def __init__(self, *, keeps: bool) -> None:
        self._keeps = keeps
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        _, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator or len(body) < len(_BODY) or self._transport is None:
            return
        self._buffer = b""
        close = b"" if self._keeps else b"Connection: close\r\n"
        self._transport.write(b"HTTP/1.1 200 OK\r\n%sContent-Length: 2\r\n\r\nok" % close)
        if not self._keeps:
            self._transport.close()


async def serve(*, keeps: bool) -> None:
    """Print the port, and answer until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answering(keeps=keeps), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.guard", description="what the guard costs")
    parser.add_argument("--seconds", type=float, default=10, help="for each row")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--serve", choices=["keep", "close"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(keeps=arguments.serve == "keep"))
        return
    found = [measure(case, arguments.seconds) for case in CASES]
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{'':36}{'deliveries/s':^27}{'CPU us each':^18}{'opened per':>12}")
        print(f"{'':36}{'guarded':>9}{'without':>9}{'ratio':>9}{'guarded':>9}{'without':>9}{'1,000':>12}")
        for row in found:
            print(
                f"{row['case']:36}{row['guarded_per_s']:9.0f}{row['unguarded_per_s']:9.0f}{row['ratio']:9.3f}"
                f"{row['guarded_cpu_us']:9.0f}{row['unguarded_cpu_us']:9.0f}{row['opened_per_1000']:12.0f}"
            )
    kept = [row["ratio"] for row, case in zip(found, CASES, strict=True) if case.keeps and case.is_compared]
    if min(kept) < BAR:
        sys.exit(f"the guard costs more than {1 - BAR:.0%} of the throughput over kept connections")


if __name__ == "__main__":
    main()
