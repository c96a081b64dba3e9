"""Many slow endpoints, each event for many of them: what a quick one notices, and how a worker under that load ends.

One worker process. Slow endpoints answer shortly before the deadline, so none of them ever fails. Far more is due to
them than the worker can do, and all the while events for one quick endpoint are handed in.
"""

import time
from pathlib import Path

from tests.fairness.judge import most_in_flight, percentile, waits_of
from tests.fairness.producer import Plan
from tests.fairness.receiver import Behaviour
from tests.fairness.rows import Row, at_most, known, must, none_of
from tests.fairness.sizes import Size, Tell
from tests.fairness.stage import Hook, Stage

NAME = "slow"

#: Webhooks of each company with slow endpoints. All get each of its events.
_WEBHOOKS = 20
#: Share of the slots that slow endpoints may have together, as documented.
_SLOW_SHARE = 0.75
_QUICK = Behaviour(delay_s=0.02)
#: Share of the deadline that slow endpoints take.
_DELAY = 0.8
#: Every second one is for the quick endpoint.
_EVENTS_PER_S = 10
#: For the last quick events to arrive.
_GRACE_S = 1.0
#: For the requests that were on their way when SIGTERM came.
_ON_THEIR_WAY_S = 1.0


def run(folder: Path, size: Size, tell: Tell) -> list[Row]:
    """Run it."""
    rows: list[Row] = []
    for slots, companies in size.slow_slots.items():
        rows += _run(folder / f"{slots}-slots", size, tell, slots, companies)
    return rows


def _run(folder: Path, size: Size, tell: Tell, slots: int, companies: int) -> list[Row]:
    settings = {
        "total_timeout_s": size.slow_timeout_s,
        "mongodb_timeout_s": size.mongodb_timeout_s,
        "concurrency": slots,
    }
    quick, groups = Hook("/quick"), [_make_slow(number) for number in range(companies)]
    slow = [hook for group in groups for hook in group]
    streams = [stream for group in groups for stream in (quick.stream(), group[0].stream())]
    with Stage(folder, settings) as stage:
        stage.add([quick, *slow])
        stage.behave(_QUICK, quick.path)
        stage.behave(Behaviour(delay_s=_DELAY * size.slow_timeout_s), *(hook.path for hook in slow))
        stage.start_workers(1)
        producer = stage.start_producer(Plan(tuple(streams), _EVENTS_PER_S))
        if not stage.run_until(lambda: stage.count(quick.path) > 0, 30):
            raise AssertionError(f"nothing arrived; see {stage.folder}")
        begun = time.monotonic()
        claims = _most_claims(stage, size.slow_s)
        until = time.monotonic()
        stage.run_for(_GRACE_S)
        told = time.monotonic()
        stage.stop_workers()
        took_s = time.monotonic() - told
        sent, arrivals = producer.stop(), stage.arrivals()
    at_quick = [arrival for arrival in arrivals if arrival.path == quick.path]
    at_slow = [arrival for arrival in arrivals if arrival.path != quick.path]
    waits = waits_of({n: at for n, at in sent.items() if n % 2 == 0}, at_quick, begun, until)
    most, p99 = most_in_flight(at_slow), percentile(waits, 0.99)
    late = [arrival.path for arrival in arrivals if arrival.arrived_at > told + _ON_THEIR_WAY_S]
    of = f"{slots} slots, {len(slow)} slow"
    tell(
        f"{NAME}: {of}: p99 {p99:.3f} s at the quick one; at most {most} slow requests and {claims} claims at one "
        f"time; ended {took_s:.1f} s after SIGTERM"
    )
    return [
        at_most(NAME, f"{of}: quick p99, s", p99, 1, noisy=3),
        at_most(NAME, f"{of}: quick, longest, s", max(waits), 2, noisy=6),
        # Otherwise slots were free, and nothing is shown.
        must(NAME, f"{of}: slow requests at one time, at least half the slots", most, most >= slots // 2),
        must(NAME, f"{of}: slow requests at one time, at most ¾ of the slots", most, most <= slots * _SLOW_SHARE),
        must(NAME, f"{of}: claims at one time, at most the slots", claims, claims <= slots),
        none_of(NAME, f"{of}: requests begun after SIGTERM", late),
        at_most(NAME, f"{of}: SIGTERM to end, deadlines", took_s / size.slow_timeout_s, 1.5, noisy=4),
        known(NAME, f"{of}: slow requests", len(at_slow)),
    ]


def _make_slow(number: int) -> list[Hook]:
    """Return the webhooks of one company."""
    first = Hook(f"/slow/{number}/0")
    return [first, *(Hook(f"/slow/{number}/{n}", company=first.company) for n in range(1, _WEBHOOKS))]


def _most_claims(stage: Stage, seconds: float) -> int:
    """Let things go on; return how many claims there were at one time, at most."""
    most, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        most = max(most, stage.database["deliveries"].count_documents({"claim": {"$exists": True}}))
        stage.run_for(0.1)
    return most
