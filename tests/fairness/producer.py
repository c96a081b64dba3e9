"""A service that hands in numbered events at a pace, or as fast as it can, for many webhooks in turn.

A process of its own: ``python -m tests.fairness.producer REPORT PLAN``, a `Plan` as JSON. It ends when
it has handed in all, or when it gets SIGTERM; then it writes its report: a list ``[number, sent_at]`` for each event
that was accepted, `time.monotonic` when its handing in began, in that order.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from celery import Celery

from tests.faults.producer import MAX_EVENTS, make_event
from webhooks import deliver

#: ``delay``: as a service that has our package. ``plain``: as one with nothing but Celery, to its default queue.
Way = Literal["delay", "plain"]


@dataclass(frozen=True, slots=True)
class Stream:
    """Events of one kind."""

    #: 24 hexadecimal digits.
    company: str
    #: The event's ``type``.
    type: str = "COTTask"
    way: Way = "delay"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to hand in: event ``number`` is one of ``streams[number % len(streams)]``."""

    streams: tuple[Stream, ...]
    #: None: as fast as it can.
    per_s: float | None
    #: How many at most.
    count: int = MAX_EVENTS
    #: The number of the first event, and from one to the next: several producers share one run of numbers.
    first: int = 0
    step: int = 1

    def to_json(self) -> str:
        """Return what `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read it."""
        fields = json.loads(text)
        return cls(**{**fields, "streams": tuple(Stream(**stream) for stream in fields["streams"])})


def _ways() -> dict[str, Callable[[Any], Any]]:
    plain = Celery("plain", broker=os.environ["WEBHOOKS_BROKER_URL"], set_as_current=False)
    return {
        "delay": deliver.delay,  # pyright: ignore[reportFunctionMemberAccess]
        "plain": lambda event: plain.send_task("webhooks.deliver", [event]),
    }


def main(report: Path, plan: Plan) -> None:
    """Hand in events until told to stop, or until all are."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    hand_in = _ways()
    accepted: list[tuple[int, float]] = []
    begun = time.monotonic()
    for index in range(plan.count):
        if told:
            break
        number = plan.first + index * plan.step
        stream = plan.streams[number % len(plan.streams)]
        event = make_event(number, stream.company, stream.type)
        sent_at = event["data"]["sent_at"] = time.monotonic()
        try:
            hand_in[stream.way](event)
        except Exception as error:  # whatever it is, nobody promised anything
            print(f"event {number} is refused: {type(error).__name__}: {error}", flush=True)
        else:
            accepted.append((number, sent_at))
        if plan.per_s:
            # From the beginning, not from the last one: what a hiccup held up is made up for, so that the load on
            # offer is the same in every run.
            time.sleep(max(0.0, begun + (index + 1) / plan.per_s - time.monotonic()))
    unfinished = report.with_suffix(".part")
    unfinished.write_text(json.dumps(accepted))
    unfinished.replace(report)
    # Not the interpreter's own way out, which may wait for a broker that is gone.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Plan.from_json(sys.argv[2]))
