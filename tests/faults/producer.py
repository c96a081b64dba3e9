"""A service that hands in numbered events at a steady pace, and remembers which of them were accepted.

A process of its own: ``python -m tests.faults.producer EVENTS_PER_S COMPANY REPORT WAY...``. It ends by itself after
`MAX_EVENTS`, or when it gets SIGTERM; then it writes its report: a list ``[number, started_at, accepted_at]`` for each
event that was accepted, both in Unix time, and the number of each one that was refused, as often as it was.

Ways, of which events take turns:

``apply_async``  as most services do
``delay_many``   with a list of one
``accept``       through the outbox
``twice``        `apply_async`, twice with the same id
"""

import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pymongo
from pymongo.database import Database

from webhooks import accept, deliver
from webhooks.config import get_settings

#: A harness that forgets its producer must not fill the disk.
MAX_EVENTS = 100_000


def event_id(number: int) -> str:
    """Return an event's id: that of its Celery message, so that handing it in again makes no second event."""
    return f"event-{number:06d}"


def number_of(an_event_id: str) -> int:
    """Return the number of the event with this id."""
    return int(an_event_id.removeprefix("event-"))


def make_event(number: int, company: str, kind: str = "COTTask") -> dict[str, Any]:
    """Return an event of some 700 bytes that has a number."""
    return {
        "company": company,
        "type": kind,
        "extraData": None,
        "createdAt": "2022-05-05T19:54:29.924Z",
        "data": {"number": number, "name": "Equipment", "followers": ["6261612d9fa3b40007c2ecc1"] * 20},
        "event": "create",
    }


@cache
def _database() -> Database[Any]:
    return pymongo.MongoClient[Any](get_settings().mongodb_url).get_default_database()


def _apply_async(event: dict[str, Any], its_id: str) -> None:
    deliver.apply_async((event,), task_id=its_id)


def _twice(event: dict[str, Any], its_id: str) -> None:
    for _ in range(2):
        _apply_async(event, its_id)


def _with_id(call: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any], str], None]:
    """Have a call that makes its event's id make this one."""

    def hand_in(event: dict[str, Any], its_id: str) -> None:
        with mock.patch.object(sys.modules[accept.__module__], "uuid", return_value=its_id):
            call(event)

    return hand_in


WAYS: Mapping[str, Callable[[dict[str, Any], str], None]] = {
    "apply_async": _apply_async,
    "delay_many": _with_id(lambda event: deliver.delay_many([event])),
    "accept": _with_id(lambda event: accept(event, _database())),
    "twice": _twice,
}


class _Producer:
    def __init__(self, company: str, ways: Sequence[str]) -> None:
        self.company = company
        self.ways = ways
        self.accepted: list[tuple[int, float, float]] = []
        self.refused: list[int] = []
        self.again: deque[int] = deque()

    def hand_in(self, number: int) -> bool:
        """Hand in an event; return whether it was accepted."""
        started_at = time.time()
        try:
            WAYS[self.ways[number % len(self.ways)]](make_event(number, self.company), event_id(number))
        except Exception as error:
            # OperationalError as a rule; whatever it is, nobody promised anything. Handed in again when the broker is
            # back, with the same id, as it may be queued all the same.
            print(f"event {number} is refused: {type(error).__name__}: {error}", flush=True)
            self.refused.append(number)
            self.again.append(number)
            return False
        self.accepted.append((number, started_at, time.time()))
        return True


def main(events_per_s: float, company: str, report: Path, *ways: str) -> None:
    """Hand in events until told to stop."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    producer = _Producer(company, ways)
    due_at = time.monotonic()
    for number in range(MAX_EVENTS):
        if told:
            break
        if producer.hand_in(number) and producer.again:
            producer.hand_in(producer.again.popleft())
        # Steady: what an outage held up is not made up for by a burst.
        due_at = max(due_at + 1 / events_per_s, time.monotonic() - 1)
        time.sleep(max(0.0, due_at - time.monotonic()))
    unfinished = report.with_suffix(".part")
    unfinished.write_text(json.dumps({"accepted": producer.accepted, "refused": producer.refused}))
    unfinished.replace(report)
    # Not the interpreter's own way out, which may wait for a broker that is gone.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
