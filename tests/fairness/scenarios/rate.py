"""A rate limit holds for all workers together: attempts per second at the receiver, with one worker and with four."""

import time
from pathlib import Path

from tests.fairness.judge import Arrival, busiest_second, rate_of
from tests.fairness.producer import Plan
from tests.fairness.receiver import Behaviour
from tests.fairness.rows import Row, known
from tests.fairness.sizes import Size, Tell
from tests.fairness.stage import Hook, Stage

NAME = "rate-limit"

#: Attempts per second, and the burst.
_LIMITS = ((20, 1), (100, 10))
_WORKERS = (1, 4)
_WITHIN = 0.05
_NOISY_WITHIN = 0.25
#: What is offered, of the limit: more, so that it is always reached, and not so much that the workers have to fan out
#: more than they can.
_OFFERED = 1.25
#: Until the burst is over and all workers are at it.
_WARM_S = 3.0


def run(folder: Path, size: Size, tell: Tell) -> list[Row]:
    """Run it."""
    settings = {
        "total_timeout_s": size.total_timeout_s,
        "mongodb_timeout_s": size.mongodb_timeout_s,
        "concurrency": 16,  # of each of four workers on a small machine
    }
    rows: list[Row] = []
    with Stage(folder, settings) as stage:
        for workers in _WORKERS:
            rows += _run(stage, size, tell, workers)
    return rows


def _run(stage: Stage, size: Size, tell: Tell, workers: int) -> list[Row]:
    stage.reset()
    hooks = [
        Hook(f"/limit/{limit}", fields={"rate_limit": float(limit), "rate_burst": burst}) for limit, burst in _LIMITS
    ]
    stage.add(hooks)
    stage.behave(Behaviour(delay_s=0.01), *(hook.path for hook in hooks))
    # Streams take turns: one with five times the limit has five of them.
    slowest = min(limit for limit, _ in _LIMITS)
    streams = tuple(
        hook.stream() for hook, (limit, _) in zip(hooks, _LIMITS, strict=True) for _ in range(limit // slowest)
    )
    stage.start_workers(workers)
    producer = stage.start_producer(Plan(streams, _OFFERED * slowest * len(streams)))
    came = stage.run_until(lambda: all(stage.count(hook.path) for hook in hooks), 60)
    stage.run_for(_WARM_S)
    since = time.monotonic()
    stage.run_for(size.rate_s)
    arrivals = stage.arrivals()
    producer.stop()
    rows: list[Row] = []
    for hook, (limit, burst) in zip(hooks, _LIMITS, strict=True):
        mine = [arrival for arrival in arrivals if arrival.path == hook.path]
        about = f"{limit}/s, burst {burst}, {workers} worker{'s' if workers > 1 else ''}"
        rows += _judge(about, mine, limit, since, since + size.rate_s)
        tell(f"{NAME}: {about}: {rows[-2].found:.2f}/s" if came else f"{NAME}: {about}: nothing came")
    return rows


def _judge(about: str, arrivals: list[Arrival], limit: int, since: float, until: float) -> list[Row]:
    found = rate_of(arrivals, since, until)
    off = abs(found / limit - 1)
    return [
        Row(NAME, f"{about}: attempts/s", found, limit, found / limit, f"within {_WITHIN:.0%}", off <= _WITHIN,
            off <= _NOISY_WITHIN),
        known(NAME, f"{about}: most in any one second", busiest_second(arrivals)),
    ]  # fmt: skip
