"""A receiver of many endpoints, each of which behaves as it is told, and which notes every request with its times.

A process of its own: ``python -m tests.fairness.receiver``. It prints its two ports as a line of JSON, then serves
until it is killed. Requests come to the first port; an endpoint is a path. The second one takes a command per
connection, a line of JSON, and answers with one:

``{"do": "set", "paths": {PATH: BEHAVIOUR}}``  these endpoints behave so from now on: see `Behaviour`, as a JSON object
``{"do": "counts"}``   ``{PATH: COUNTS}``: see `Counts`, as a JSON object. Cheap
``{"do": "records"}``  one list per request, in the order of their coming: see `tests.fairness.judge.Arrival`
``{"do": "forget"}``   forget what was counted and noted; behaviours stay

All times are those of `time.monotonic`, which on Linux all processes share.
"""

import asyncio
import json
import random
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tests.lab.quick_http import RequestProtocol, port_of, serve_commands

_NUMBER = re.compile(rb'"number": *(\d+)')
_SENT_AT = re.compile(rb'"sent_at": *([0-9.]+)')
_ID = re.compile(rb"\r\nwebhook-id: *(\S+)", re.IGNORECASE)

#: Indexes in a record.
_ENDED_AT, _STATUS = 3, 4


@dataclass(slots=True)
class Behaviour:
    """How an endpoint answers."""

    #: ``hang``: never. ``waking``: as ``answer``, but it takes only so many requests a second as it is used to: see
    #: `Endpoint.take`.
    kind: Literal["answer", "hang", "waking"] = "answer"
    #: Seconds until it answers.
    delay_s: float = 0.0
    status: int = 200
    #: Share of the requests that get `fail_status` instead, by chance.
    fail_share: float = 0.0
    fail_status: int = 500
    #: For ``waking``: it falls over when a second brings more than `growth` × that of the second before + `slack`.
    growth: float = 3.0
    slack: int = 20


@dataclass(slots=True)
class Counts:
    """What came to an endpoint."""

    came: int = 0
    #: Answered with 200.
    ok: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    #: Requests that were too much for a waking endpoint: it answered 503.
    outages: int = 0


@dataclass(slots=True)
class Endpoint:
    """A path."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    counts: Counts = field(default_factory=Counts)
    #: For ``waking``: the second that is counted, and the requests of it and of the one before.
    second: int = 0
    this_second: int = 0
    last_second: int = 0

    def take(self, at: float) -> bool:
        """Count a request that comes at this time; return whether a waking endpoint can bear it."""
        second = int(at)
        if second != self.second:
            self.last_second = self.this_second if second == self.second + 1 else 0
            self.second, self.this_second = second, 0
        self.this_second += 1
        return self.this_second <= self.behaviour.growth * self.last_second + self.behaviour.slack


class Receiver:
    """Listens, notes, and behaves as it is told to."""

    def __init__(self) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        #: Of each request what `judge.Arrival` has, in that order.
        self.records: list[list[Any]] = []
        #: The same chance in every run.
        self._random = random.Random(0)

    def endpoint(self, path: str) -> Endpoint:
        """Return the endpoint at a path; one that nobody spoke of answers at once."""
        found = self.endpoints.get(path)
        if found is None:
            found = self.endpoints[path] = Endpoint()
        return found

    async def obey(self, order: Any) -> Any:
        """Carry out a command."""
        match order["do"]:
            case "set":
                for path, behaviour in order["paths"].items():
                    self.endpoint(path).behaviour = Behaviour(**behaviour)
                return "done"
            case "counts":
                return {path: asdict(endpoint.counts) for path, endpoint in self.endpoints.items()}
            case "records":
                return self.records
            case "forget":
                self.records = []
                for endpoint in self.endpoints.values():
                    # What is in flight now will end.
                    endpoint.counts = Counts(in_flight=endpoint.counts.in_flight)
                return "done"
        raise ValueError(f"no such command: {order!r}")

    def begin(self, head: bytes, body: bytes) -> tuple[Endpoint, list[Any], int | None]:
        """Note that a request has come.

        Returns:
            Its endpoint, its record, and the status to answer; None for no answer.
        """
        present = time.monotonic()
        path = head.split(b" ", 2)[1].decode()
        number, sent_at, webhook_id = _NUMBER.search(body), _SENT_AT.search(body), _ID.search(head)
        record = [
            path,
            int(number[1]) if number else -1,
            present,
            None,
            None,
            float(sent_at[1]) if sent_at else None,
            webhook_id[1].decode() if webhook_id else "",
        ]
        self.records.append(record)
        endpoint = self.endpoint(path)
        counts, behaviour = endpoint.counts, endpoint.behaviour
        counts.came += 1
        counts.in_flight += 1
        counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
        if behaviour.kind == "hang":
            return endpoint, record, None
        if behaviour.kind == "waking" and not endpoint.take(present):
            counts.outages += 1
            return endpoint, record, 503
        if behaviour.fail_share and self._random.random() < behaviour.fail_share:
            return endpoint, record, behaviour.fail_status
        return endpoint, record, behaviour.status

    def end(self, endpoint: Endpoint, record: list[Any], status: int | None) -> None:
        """Note that a request was answered, or with None that whoever asked has gone."""
        if record[_ENDED_AT] is not None:
            return
        record[_ENDED_AT], record[_STATUS] = time.monotonic(), status
        # One that came before "forget" may end after it, too.
        endpoint.counts.in_flight = max(0, endpoint.counts.in_flight - 1)
        endpoint.counts.ok += status == 200


class _Connection(RequestProtocol):
    """One kept-alive connection."""

    def __init__(self, receiver: Receiver) -> None:
        super().__init__()
        self._receiver = receiver
        self._open: list[tuple[Endpoint, list[Any]]] = []

    def connection_lost(self, exc: Exception | None) -> None:
        for endpoint, record in self._open:
            self._receiver.end(endpoint, record, None)
        self._open.clear()

    def answer(self, head: bytes, body: bytes) -> None:
        endpoint, record, status = self._receiver.begin(head, body)
        self._open.append((endpoint, record))
        if status is None:
            return
        delay_s = endpoint.behaviour.delay_s
        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, self._reply, endpoint, record, status)
        else:
            self._reply(endpoint, record, status)

    def _reply(self, endpoint: Endpoint, record: list[Any], status: int) -> None:
        if self.transport is None or not self.is_open:
            return  # `connection_lost` has noted it, or will
        self._open = [pair for pair in self._open if pair[1] is not record]
        self._receiver.end(endpoint, record, status)
        self.transport.write(b"HTTP/1.1 %d Said\r\nContent-Length: 2\r\n\r\nok" % status)


async def _main() -> None:
    receiver = Receiver()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(receiver), "127.0.0.1", 0, backlog=1024)
    control = await serve_commands(receiver.obey)
    print(json.dumps([port_of(server), port_of(control)]), flush=True)
    await control.serve_forever()


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
