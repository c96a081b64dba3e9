"""A service that hands in events: one at a time, at a pace, or many at once.

A program: ``python -m tests.bench.producer LINES HANDING REPORT``. LINES is a file of `events.to_lines`, which is gone
through again and again; HANDING a `Handing` as JSON. The file REPORT gets ``{"single": […], "bulk": […]}``, the events
per second of each round.
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
    """What one producer hands in: of events 0, 1, 2, … those with numbers `first`, `first` + `step`, …"""

    #: Below this number, one at a time.
    single: int
    #: Then below this number, in bulk.
    bulk: int = 0
    first: int = 0
    step: int = 1
    #: Events per second; 0: as fast as it can.
    per_s: float = 0
    rounds: int = 1
    #: Before, hand in one that no webhook asked for, to have a connection.
    is_warm: bool = False

    def to_json(self) -> str:
        """Return it for the command line, here and in `baselines`."""
        return json.dumps(asdict(self))


def hand_in(lines: Lines, handing: Handing) -> dict[str, list[float]]:
    """Hand in; return the events per second of each round."""
    rates: dict[str, list[float]] = {"single": [], "bulk": []}
    if handing.is_warm:
        deliver.delay({**lines[0]["event"], "company": str(ObjectId())})  # pyright: ignore[reportFunctionMemberAccess]
    for _ in range(handing.rounds):
        if handing.single:
            rates["single"].append(_single(lines, handing))
        if handing.bulk:
            rates["bulk"].append(_bulk(lines, handing))
    return rates


def _single(lines: Lines, handing: Handing) -> float:
    numbers = range(handing.first, handing.single, handing.step)
    begun = time.monotonic()
    for index, number in enumerate(numbers):
        event = lines[number % len(lines)]["event"]
        event["data"]["number"], event["data"]["sent_at"] = number, time.monotonic()
        deliver.delay(event)  # pyright: ignore[reportFunctionMemberAccess]
        if handing.per_s:
            # Counted from the start, so that a slow event does not lower the load.
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
    with lines.open() as file:
        told = hand_in([json.loads(line) for line in file], handing)
    report.write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Handing(**json.loads(sys.argv[2])), Path(sys.argv[3]))
