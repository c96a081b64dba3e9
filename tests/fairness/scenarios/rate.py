"""A rate limit holds for all workers together: attempts per second at the receiver, with one worker and with four.

One webhook at a time, so that a small machine can reach its limit. At full size the highest is run without a limit,
too: where fewer come then, it is not the limit that was measured.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fairness.judge import busiest_second, rate_of
from tests.fairness.producer import Plan
from tests.fairness.receiver import Behaviour
from tests.fairness.rows import Row, known
from tests.fairness.sizes import Size, Tell
from tests.fairness.stage import Hook, Stage

NAME = "rate-limit"

#: Attempts per second, and the burst.
_LIMITS = ((20, 1), (50, 10))
_WORKERS = (1, 4)
_WITHIN = 0.05
#: On a busy machine fewer may come, of the limit. A few more come only after a hiccup, and never all that is on offer.
_NOISY_LEAST, _NOISY_MOST = 0.6, 1.1
#: What is offered, of the limit: more, so that it is always reached, and not so much that the worker has more to fan
#: out than it can.
_OFFERED = 1.25
#: Until the burst is over and all workers are at it.
_WARM_S = 2.5


@dataclass(frozen=True, slots=True)
class Run:
    """What was seen."""

    #: Attempts per second.
    per_s: float
    #: Attempts in any one second, at most.
    busiest: int


def run(folder: Path, size: Size, tell: Tell) -> list[Row]:
    """Run it."""
    settings = {
        "total_timeout_s": size.total_timeout_s,
        "mongodb_timeout_s": size.mongodb_timeout_s,
        "concurrency": 16,  # of each of four workers on a small machine
    }
    rows: list[Row] = []
    with Stage(folder, settings) as stage:
        limit, _ = _LIMITS[-1]
        if not size.is_noisy:
            found = _run(stage, size, 1, limit, {})
            rows.append(known(NAME, f"no limit, {_OFFERED * limit:.0f}/s on offer, 1 worker: attempts/s", found.per_s))
        for workers in _WORKERS:
            for limit, burst in _LIMITS[:1] if size.is_noisy else _LIMITS:
                found = _run(stage, size, workers, limit, {"rate_limit": float(limit), "rate_burst": burst})
                about = f"{limit}/s, burst {burst}, {workers} worker{'s' if workers > 1 else ''}"
                tell(f"{NAME}: {about}: {found.per_s:.2f}/s")
                ratio = found.per_s / limit
                rows += [
                    Row(NAME, f"{about}: attempts/s", found.per_s, limit, ratio, f"within {_WITHIN:.0%}",
                        abs(ratio - 1) <= _WITHIN, _NOISY_LEAST <= ratio <= _NOISY_MOST),
                    known(NAME, f"{about}: most in any one second", found.busiest),
                ]  # fmt: skip
    return rows


def _run(stage: Stage, size: Size, workers: int, limit: int, fields: dict[str, Any]) -> Run:
    """Run once, with a stage that is emptied first.

    Args:
        stage: which.
        size: how much of everything.
        workers: how many.
        limit: attempts per second; more events than that are on offer.
        fields: of the webhook.
    """
    stage.reset()
    hook = Hook("/endpoint", fields=fields)
    stage.add([hook])
    stage.behave(Behaviour(delay_s=0.01), hook.path)
    stage.start_workers(workers)
    producer = stage.start_producer(Plan((hook.stream(),), _OFFERED * limit))
    if not stage.run_until(lambda: stage.count(hook.path) > 0, 30):
        raise AssertionError(f"nothing arrived; see {stage.folder}")
    stage.run_for(_WARM_S)
    since = time.monotonic()
    stage.run_for(size.rate_s)
    until = time.monotonic()
    arrivals = stage.arrivals()
    producer.stop()
    return Run(rate_of(arrivals, since, until), busiest_second(arrivals))
