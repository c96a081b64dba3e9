"""A service that hands in events: one at a time, at a pace, or many at once.

A process of its own: ``python -m tests.bench.producer LINES PLAN REPORT``. LINES is a file of `events.to_lines`,
which is gone through again and again; PLAN a `Handing` as JSON; the file REPORT gets ``{"single": […], "bulk": […]}``,
the events per second of each round.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bson import ObjectId

from webhooks import deliver

#: Events of one bulk.
_BULK = 1_000

Lines = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Handing:
    """What one producer hands in: events number `first`, `first` + `step`, … below `count`."""

    count: int
    first: int = 0
    step: int = 1
    #: Events per second; 0: as fast as it can.
    per_s: float = 0
    #: Hand them in one at a time.
    is_single: bool = True
    #: Hand so many of them in in bulk, after those; 0: none.
    bulk: int = 0
    rounds: int = 1
    #: Hand in one first that nobody asked for, so that the connection is there.
    is_warm: bool = False

    def to_json(self) -> str:
        """Return what `main` reads, here and in `yardsticks`."""
        return json.dumps(asdict(self))


def hand_in(lines: Lines, handing: Handing) -> dict[str, list[float]]:
    """Carry out a plan; return the events per second of each round."""
    rates: dict[str, list[float]] = {"single": [], "bulk": []}
    if handing.is_warm:
        deliver.delay({**lines[0]["event"], "company": str(ObjectId())})  # pyright: ignore[reportFunctionMemberAccess]
    for _ in range(handing.rounds):
        if handing.is_single:
            rates["single"].append(_single(lines, handing))
        if handing.bulk:
            rates["bulk"].append(_bulk(lines, handing))
    return rates


def _single(lines: Lines, handing: Handing) -> float:
    numbers = range(handing.first, handing.count, handing.step)
    begun = time.monotonic()
    for index, number in enumerate(numbers):
        event = lines[number % len(lines)]["event"]
        event["data"]["number"], event["data"]["sent_at"] = number, time.monotonic()
        deliver.delay(event)  # pyright: ignore[reportFunctionMemberAccess]
        if handing.per_s:
            # From the beginning, not from the last one, so that the load is the same whatever one of them took.
            time.sleep(max(0.0, begun + (index + 1) / handing.per_s - time.monotonic()))
    return len(numbers) / (time.monotonic() - begun)


def _bulk(lines: Lines, handing: Handing) -> float:
    numbers = iter(range(handing.first, handing.bulk, handing.step))
    count = 0
    begun = time.monotonic()
    while some := list(islice(numbers, _BULK)):
        events = [lines[number % len(lines)]["event"] for number in some]
        deliver.delay_many(events)  # pyright: ignore[reportFunctionMemberAccess]
        count += len(some)
    return count / (time.monotonic() - begun)


def main(lines: Path, handing: Handing, report: Path) -> None:
    """Hand in, and write the report."""
    with lines.open() as file:
        told = hand_in([json.loads(line) for line in file], handing)
    report.write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Handing(**json.loads(sys.argv[2])), Path(sys.argv[3]))
