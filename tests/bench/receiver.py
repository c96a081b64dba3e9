"""A receiver that costs next to nothing: one process, raw sockets, epoll. Linux only, as all of the benchmark.

A program of its own, run by its path, with the standard library alone: ``receiver.py REPORT ADDRESS PORTS DELAY_S``.
It listens at so many free ports of an address, writes ``{"pid", "ports"}`` into the file REPORT, and serves until it is
killed. Its paths:

``/``          answers at once
``/slow``      answers after DELAY_S
``/hang``      never answers
``/arrivals``  answers with ``[number, sent_at, arrived_at]`` of each request since the last time that it was asked, of
               those whose body has both; times are those of `time.monotonic`, which all processes share
"""

import heapq
import json
import os
import re
import select
import socket
import sys
import time
from pathlib import Path

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_NUMBER = re.compile(rb'"number": ?(\d+)')
_SENT_AT = re.compile(rb'"sent_at": ?([0-9.]+)')
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_READ_BYTES = 256 * 1024


class _Receiver:
    """All connections of all ports."""

    def __init__(self, address: str, ports: int, delay_s: float) -> None:
        self._delay_s = delay_s
        self._epoll = select.epoll()
        self._listening: dict[int, socket.socket] = {}
        for _ in range(ports):
            server = socket.create_server((address, 0), backlog=4096)
            server.setblocking(False)
            self._listening[server.fileno()] = server
            self._epoll.register(server, select.EPOLLIN)
        self._open: dict[int, socket.socket] = {}
        self._unread: dict[int, bytes] = {}
        #: When to answer, and whom.
        self._due: list[tuple[float, int, socket.socket]] = []
        self._count = 0
        self._arrivals: list[tuple[int, float, float]] = []

    def ports(self) -> list[int]:
        """Return where it listens."""
        return [server.getsockname()[1] for server in self._listening.values()]

    def serve(self) -> None:
        """Serve for ever."""
        while True:
            wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else -1
            for number, _ in self._epoll.poll(wait_s):
                if number in self._listening:
                    self._accept(self._listening[number])
                else:
                    self._read(number)
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                self._send(heapq.heappop(self._due)[2], _ANSWER)

    def _accept(self, server: socket.socket) -> None:
        try:
            link, _ = server.accept()
        except OSError:  # it has gone again
            return
        # Answers are far smaller than a socket's buffer, so that sending them never waits.
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open[link.fileno()] = link
        self._epoll.register(link, select.EPOLLIN)

    def _read(self, number: int) -> None:
        link = self._open[number]
        try:
            data = link.recv(_READ_BYTES)
        except OSError:
            data = b""
        if not data:
            del self._open[number]
            self._unread.pop(number, None)
            link.close()  # which takes it out of epoll, too
            return
        data = self._unread.pop(number, b"") + data
        while data:
            end = data.find(b"\r\n\r\n") + 4
            length = _LENGTH.search(data, 0, end) if end > 3 else None
            whole = end + (int(length[1]) if length else 0)
            if end == 3 or len(data) < whole:
                self._unread[number] = data
                return
            self._take(link, data[:end], data[end:whole])
            data = data[whole:]

    def _take(self, link: socket.socket, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path == b"/arrivals":
            told, self._arrivals = json.dumps(self._arrivals).encode(), []
            link.setblocking(True)
            self._send(link, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(told) + told)
            return
        sent_at = _SENT_AT.search(body)
        if sent_at:
            number = _NUMBER.search(body)
            self._arrivals.append((int(number[1]) if number else -1, float(sent_at[1]), time.monotonic()))
        if path == b"/slow":
            self._count += 1  # a socket has no order
            heapq.heappush(self._due, (time.monotonic() + self._delay_s, self._count, link))
        elif path != b"/hang":
            self._send(link, _ANSWER)

    def _send(self, link: socket.socket, answer: bytes) -> None:
        try:
            link.sendall(answer)
        except OSError:  # whoever asked has gone, which reading will tell
            return


def main(report: Path, address: str, ports: int, delay_s: float) -> None:
    """Serve, having written the ports down."""
    receiver = _Receiver(address, ports, delay_s)
    unfinished = report.with_suffix(".part")
    unfinished.write_text(json.dumps({"pid": os.getpid(), "ports": receiver.ports()}))
    unfinished.replace(report)
    receiver.serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
