"""One that is loud: what a quiet one notices of all the events that are queued before its own.

One worker process, which is down while the loud events are queued, so that all of them are there. The quiet one is
alone first.
"""

import time
from pathlib import Path
from typing import Any

from tests.fairness.judge import percentile, waits_of
from tests.fairness.producer import Plan
from tests.fairness.receiver import Behaviour
from tests.fairness.rows import Row, at_most, known, must
from tests.fairness.sizes import Size, Tell
from tests.fairness.stage import Hook, Stage

NAME = "loud-company"

_ANSWERS = Behaviour(delay_s=0.01)
#: Share of the time for which the quiet one is measured alone.
_ALONE = 0.3
#: For the last quiet events to arrive; one that takes longer has missed the bar by far.
_GRACE_S = 3.0
_BAR_S = 1.0
#: The bar on a machine that does other things.
_NOISY_BAR_S = 3.0
#: Numbers of quiet events begin here: far from those of loud ones.
_QUIET_NUMBERS = 1_000_000

#: What the table says of a variant, how its events are handed in, and whether both webhooks are one company's.
_VARIANTS = (
    ("two companies, `deliver.delay`", "delay", False),
    ("two companies, plain Celery", "plain", False),
    ("two webhooks of one company", "delay", True),
)


def run(folder: Path, size: Size, tell: Tell) -> list[Row]:
    """Run it."""
    rows: list[Row] = []
    settings = {"total_timeout_s": size.total_timeout_s, "mongodb_timeout_s": size.mongodb_timeout_s}
    with Stage(folder, settings) as stage:
        for about, way, is_one_company in _VARIANTS[1:] if size.is_noisy else _VARIANTS:
            rows += _run(stage, size, tell, about, way, is_one_company=is_one_company)
    return rows


def _run(stage: Stage, size: Size, tell: Tell, about: str, way: Any, *, is_one_company: bool) -> list[Row]:
    stage.reset()
    loud = Hook("/loud", type="COTTask")
    quiet = Hook("/quiet", company=loud.company, type="COTNote") if is_one_company else Hook("/quiet", type="COTNote")
    stage.add([loud, quiet])
    stage.behave(_ANSWERS, loud.path, quiet.path)
    stage.start_workers(1)
    alone, _ = _listen(stage, size, quiet, way, size.loud_s * _ALONE)
    stage.stop_workers()
    _, took_s = stage.queue([loud.stream(way=way)], size.loud_events)
    tell(f"{NAME}: {about}: {size.loud_events:,} loud events were queued in {took_s:.0f} s")
    stage.start_workers(1)
    waits, loud_per_s = _listen(stage, size, quiet, way, size.loud_s)
    done = stage.count(loud.path)
    before, after = percentile(alone, 0.99), percentile(waits, 0.99)
    tell(f"{NAME}: {about}: p99 {after:.3f} s, alone {before:.3f} s; {done:,} loud deliveries meanwhile")
    return [
        Row(NAME, f"{about}: quiet p99, s", after, before, None, f"≤ {_BAR_S:g} s", after <= _BAR_S,
            after <= _NOISY_BAR_S),
        at_most(NAME, f"{about}: quiet, longest, s", max(waits), 10 * _BAR_S, noisy=10 * _BAR_S),
        known(NAME, f"{about}: loud deliveries/s meanwhile", loud_per_s),
        # Otherwise the quiet one was alone in the end, and nothing is shown.
        must(NAME, f"{about}: loud left at the end", size.loud_events - done, done < size.loud_events),
    ]  # fmt: skip


def _listen(stage: Stage, size: Size, quiet: Hook, way: Any, seconds: float) -> tuple[list[float], float]:
    """Hand in quiet events for some time.

    Returns:
        Seconds that each took to arrive; and the deliveries per second to others meanwhile.
    """
    stage.forget()
    begun = time.monotonic()
    plan = Plan((quiet.stream(way=way),), 1 / size.quiet_every_s, round(seconds / size.quiet_every_s), _QUIET_NUMBERS)
    sent = stage.start_producer(plan).wait(seconds + 60)
    stage.run_for(_GRACE_S)
    arrivals, past_s = stage.arrivals(), time.monotonic() - begun
    others = sum(arrival.path != quiet.path for arrival in arrivals)
    return waits_of(sent, (a for a in arrivals if a.path == quiet.path), begun, float("inf")), others / past_s
