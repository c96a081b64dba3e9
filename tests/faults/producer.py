"""A service that hands in numbered events at a steady pace, and remembers which of them were accepted.

A process of its own: ``python -m tests.faults.producer EVENTS_PER_S COMPANY REPORT``. It ends by itself after
`MAX_EVENTS`, or when it gets SIGTERM; then it writes its report: a list ``[number, started_at, accepted_at]`` for each
event that `apply_async` returned for, both in Unix time, and how many times it raised.
"""

import json
import os
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from webhooks import deliver

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


class _Producer:
    def __init__(self, company: str) -> None:
        self.company = company
        self.accepted: list[tuple[int, float, float]] = []
        self.refusals = 0
        self.again: deque[int] = deque()

    def hand_in(self, number: int) -> bool:
        """Hand in an event; return whether it was accepted."""
        started_at = time.time()
        try:
            deliver.apply_async((make_event(number, self.company),), task_id=event_id(number))  # pyright: ignore[reportFunctionMemberAccess]
        except Exception as error:
            # OperationalError as a rule; whatever it is, nobody promised anything. Handed in again when the broker is
            # back, with the same id, as it may be queued all the same.
            print(f"event {number} is refused: {type(error).__name__}: {error}", flush=True)
            self.refusals += 1
            self.again.append(number)
            return False
        self.accepted.append((number, started_at, time.time()))
        return True


def main(events_per_s: float, company: str, report: Path) -> None:
    """Hand in events until told to stop."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    producer = _Producer(company)
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
    unfinished.write_text(json.dumps({"accepted": producer.accepted, "refusals": producer.refusals}))
    unfinished.replace(report)
    # Not the interpreter's own way out, which may wait for a broker that is gone.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
