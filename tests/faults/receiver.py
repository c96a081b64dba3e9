"""A receiver that takes hundreds of requests a second beside everything else, and counts them.

A process of its own: ``python -m tests.faults.receiver``. It prints its two ports as a line of JSON, then serves until
it is killed. Requests come to the first port. The second one takes a command per connection, a line of JSON, and
answers with one:

``{"mode": "ok"}``         answer 200, but 503 to the first attempt of every tenth event: retries are always about
``{"mode": "fail_first"}`` answer 503 to the first attempt of every event, 200 to later ones
``{"mode": "reset_half"}`` reset every second connection when its request has come, close the others after one answer
``{"mode": "hold"}``       answer nothing until another mode comes, then answer all
``{"mode": "down"}``       close the port
``{"mode": null}``         leave it; the answer is what was counted: see `Counted`
"""

import asyncio
import json
import re
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.lab.quick_http import RequestProtocol, port_of, serve_commands

_NUMBER = re.compile(rb'"number":(\d+)')
_ID = re.compile(rb"\r\nwebhook-id: *(\S+)", re.IGNORECASE)

#: Seconds until a request is answered: as long as a quick receiver takes somewhere on the net, so that at every
#: instant many attempts are in flight for a fault to strike.
ANSWER_AFTER_S = 0.03

MODES = ("ok", "fail_first", "reset_half", "hold", "down")


@dataclass(slots=True)
class Counted:
    """What came of one event for one webhook."""

    #: Requests that came.
    begun: int = 0
    #: Requests that were answered 200.
    ok: int = 0
    #: Requests that were answered otherwise, by a reset, or not at all, as whoever asked was gone.
    failed: int = 0
    #: When the first 200 was answered, in Unix time; 0 before.
    first_ok_at: float = 0.0
    #: Every ``webhook-id`` that it came with.
    ids: set[str] = field(default_factory=set)


class Receiver:
    """Listens, counts, and behaves as it is told to."""

    def __init__(self) -> None:
        self.mode = "ok"
        self.counted: dict[tuple[int, str], Counted] = {}
        self.connections: set[_Connection] = set()
        #: What answers the requests that are held.
        self.held: list[Callable[[], None]] = []
        self.accepted = 0
        self._socket = self._bind(0)
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where requests come to."""
        return self._socket.getsockname()[1]

    def _bind(self, port: int) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
        return made

    async def switch(self, mode: str) -> None:
        """Behave so from now on."""
        if mode not in MODES:
            raise ValueError(f"no such mode: {mode!r}")
        self.mode = mode
        held, self.held = self.held, []
        for reply in held:
            reply()
        if mode == "down" and self._server is not None:
            port = self.port
            self._server.close()
            self._server = None
            for connection in list(self.connections):
                connection.reset()
            # Bound but not listening: it refuses, and nobody else gets the port meanwhile.
            self._socket = self._bind(port)
        elif mode != "down" and self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: _Connection(self), sock=self._socket, backlog=1024)

    def begin(self, key: tuple[int, str], webhook_id: str, *, is_doomed: bool) -> int | None:
        """Note that a request has come.

        Returns:
            The status to answer; None for a reset.
        """
        counted = self.counted.setdefault(key, Counted())
        counted.ids.add(webhook_id)
        counted.begun += 1
        if is_doomed:
            return None
        must_fail = self.mode == "fail_first" or (self.mode == "ok" and key[0] % 10 == 0)
        return 503 if must_fail and counted.begun == 1 else 200

    def end(self, key: tuple[int, str], *, is_ok: bool) -> None:
        """Note what a request was answered."""
        counted = self.counted[key]
        counted.ok += is_ok
        counted.failed += not is_ok
        if is_ok:
            counted.first_ok_at = counted.first_ok_at or time.time()

    async def obey(self, order: Any) -> Any:
        """Carry out the command of one connection to the second port."""
        if order["mode"] is not None:
            await self.switch(order["mode"])
            return "done"
        return [
            [number, path, c.ok, c.failed, c.first_ok_at, sorted(c.ids)] for (number, path), c in self.counted.items()
        ]


class _Connection(RequestProtocol):
    """One kept-alive connection."""

    def __init__(self, receiver: Receiver) -> None:
        super().__init__()
        self._receiver = receiver
        self._number = receiver.accepted
        receiver.accepted += 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._receiver.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._receiver.connections.discard(self)

    def reset(self) -> None:
        """Close so that the peer gets a RST: linger on, no seconds."""
        if self.transport is not None:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def answer(self, head: bytes, body: bytes) -> None:
        assert self.transport is not None
        is_resetting = self._receiver.mode == "reset_half"
        path = head.split(b" ", 2)[1].decode()
        number, webhook_id = _NUMBER.search(body), _ID.search(head)
        if number is None or webhook_id is None:
            self.transport.write(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")
            return
        is_doomed = is_resetting and self._number % 2 == 0
        key = (int(number[1]), path)
        status = self._receiver.begin(key, webhook_id[1].decode(), is_doomed=is_doomed)
        reply = partial(self._reply, key, status, is_resetting)
        if self._receiver.mode == "hold":
            self._receiver.held.append(reply)
        else:
            asyncio.get_running_loop().call_later(ANSWER_AFTER_S, reply)

    def _reply(self, key: tuple[int, str], status: int | None, is_resetting: bool) -> None:
        self._receiver.end(key, is_ok=status == 200 and self.is_open)
        if self.transport is None or not self.is_open:
            return
        if status is None:
            self.reset()
            return
        close = b"Connection: close\r\n" if is_resetting else b""  # so that the lucky half does not serve all
        self.transport.write(b"HTTP/1.1 %d Said\r\n%sContent-Length: 2\r\n\r\nok" % (status, close))
        if close:
            self.transport.close()


async def _main() -> None:
    receiver = Receiver()
    await receiver.switch("ok")
    control = await serve_commands(receiver.obey)
    print(json.dumps([receiver.port, port_of(control)]), flush=True)
    await control.serve_forever()


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
