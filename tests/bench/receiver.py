"""A receiver that costs little, and notes when requests arrive.

A program: ``python -m tests.bench.receiver REPORT ADDRESS PORTS DELAY_S``. It listens at PORTS free ports of an
address, writes ``{"pid", "ports"}`` into the file REPORT, and serves until it is killed. Its paths:

``/``          answers at once
``/slow``      answers after DELAY_S
``/hang``      never answers
``/arrivals``  answers with ``[number, sent_at, arrived_at]`` of each request since it was last asked whose body has
               both; times are those of `time.monotonic`, which all processes share
"""

import asyncio
import json
import os
import re
import sys
import time
from pathlib import Path

from tests.lab.quick_http import RequestProtocol, port_of

_NUMBER = re.compile(rb'"number": ?(\d+)')
_SENT_AT = re.compile(rb'"sent_at": ?([0-9.]+)')

Arrival = tuple[int, float, float]


class _Connection(RequestProtocol):
    def __init__(self, arrivals: list[Arrival], delay_s: float) -> None:
        super().__init__()
        self._arrivals = arrivals
        self._delay_s = delay_s

    def answer(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path == b"/arrivals":
            self._send(json.dumps(self._arrivals).encode())
            self._arrivals.clear()
            return
        sent_at, number = _SENT_AT.search(body), _NUMBER.search(body)
        if sent_at and number:
            self._arrivals.append((int(number[1]), float(sent_at[1]), time.monotonic()))
        if path == b"/slow":
            asyncio.get_running_loop().call_later(self._delay_s, self._send, b"ok")
        elif path != b"/hang":
            self._send(b"ok")

    def _send(self, body: bytes) -> None:
        if self.is_open and self.transport is not None:
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def main(report: Path, address: str, ports: int, delay_s: float) -> None:
    """Serve, and write the report."""
    arrivals: list[Arrival] = []
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_server(lambda: _Connection(arrivals, delay_s), address, 0, backlog=4096) for _ in range(ports)
    ]
    unfinished = report.with_suffix(".part")
    unfinished.write_text(json.dumps({"pid": os.getpid(), "ports": [port_of(server) for server in made]}))
    unfinished.replace(report)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
