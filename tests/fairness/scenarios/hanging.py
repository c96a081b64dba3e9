"""Endpoints of which some hang: what the others notice of it.

One worker process. Each run begins with nothing: none of the endpoints hang, then one, then more. First with a backlog
for all of them that outlasts the run, then under 70 % of the load that the worker could do when none hung.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from tests.fairness.judge import Arrival, most_in_flight, percentile, rate_of, waits_of
from tests.fairness.producer import Plan
from tests.fairness.receiver import Behaviour
from tests.fairness.rows import Row, at_least, at_most, known, must
from tests.fairness.sizes import Size, Tell
from tests.fairness.stage import Hook, Stage

NAME = "hanging"

#: A quick endpoint somewhere on the net.
_HEALTHY = Behaviour(delay_s=0.02)
_HANGS = Behaviour("hang")
#: Share of what the worker can do that it is offered.
_LOAD = 0.7
#: For the last events of the window to arrive.
_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Run:
    """What was seen in one window of time."""

    #: Arrivals per second at the endpoints that are healthy in each run.
    healthy_per_s: float
    #: Seconds from handing in to arrival, 99th percentile, at those.
    p99_s: float
    #: Attempts in flight at one hanging endpoint, at most.
    in_flight: int
    #: Arrivals per second in all.
    per_s: float
    #: Events for the healthy that had not arrived in the end.
    left: int


def run(folder: Path, size: Size, tell: Tell) -> list[Row]:
    """Run it."""
    settings = {"total_timeout_s": size.total_timeout_s, "mongodb_timeout_s": size.mongodb_timeout_s}
    rows: list[Row] = []
    with Stage(folder, settings) as stage:
        # In CI this is for the load alone.
        backlogs = (0,) if size.is_noisy else (0, *size.hanging)
        saturated = {hanging: _run(stage, size, hanging, None, tell) for hanging in backlogs}
        load_per_s = _LOAD * saturated[0].per_s
        loaded = {hanging: _run(stage, size, hanging, load_per_s, tell) for hanging in (0, *size.hanging)}
    rows.append(known(NAME, "deliveries/s of one worker, none hangs", saturated[0].per_s))
    # Otherwise it was no backlog, and nothing is shown.
    left = min(run.left for run in saturated.values())
    rows.append(must(NAME, "backlog left at the end of each run", left, left > 0))
    for hanging in size.hanging:
        of = f"{hanging} of {size.endpoints} hang"
        before, after = loaded[0], loaded[hanging]
        rows += [
            at_least(NAME, f"{of}, 70 % load: healthy/s", after.healthy_per_s, 0.9, noisy=0.7,
                     without=before.healthy_per_s),
            at_most(NAME, f"{of}, 70 % load: healthy p99, s", after.p99_s, 2, noisy=20, without=before.p99_s),
            known(NAME, f"{of}, 70 % load: most in flight at one", after.in_flight),
        ]  # fmt: skip
        if hanging not in saturated:
            continue
        rows += [
            at_least(NAME, f"{of}, backlog: healthy/s", saturated[hanging].healthy_per_s, 0.9, noisy=0.5,
                     without=saturated[0].healthy_per_s),
            known(NAME, f"{of}, backlog: most in flight at one", saturated[hanging].in_flight),
        ]  # fmt: skip
    return rows


def _run(stage: Stage, size: Size, hanging: int, per_s: float | None, tell: Tell) -> Run:
    """Run once.

    Args:
        stage: which is emptied first.
        size: how much of everything.
        hanging: how many hang.
        per_s: events per second on offer; None for a backlog.
        tell: gets a line.
    """
    stage.reset()
    hooks = [Hook(f"/endpoint/{number}") for number in range(size.endpoints)]
    stage.add(hooks)
    hang = {hook.path for hook in hooks[:hanging]}
    # The same ones in each run: those that hang in some run stand apart.
    healthy = {hook.path for hook in hooks[max(size.hanging) :]}
    stage.behave(_HEALTHY, *(hook.path for hook in hooks))
    if hang:
        stage.behave(_HANGS, *hang)
    streams = tuple(hook.stream() for hook in hooks)
    sent: dict[int, float] = {}
    producer = None
    if per_s is None:
        sent, _ = stage.queue(streams, round(size.backlog_per_s * (size.hanging_warm_s + size.hanging_s)))
    stage.start_workers(1)
    if per_s is not None:
        producer = stage.start_producer(Plan(streams, per_s))
    if not stage.run_until(lambda: sum(counts["came"] for counts in stage.counts().values()) > 0, 30):
        raise AssertionError(f"nothing arrived; see {stage.folder}")
    stage.run_for(size.hanging_warm_s)
    since = time.monotonic()
    stage.run_for(size.hanging_s)
    until = time.monotonic()
    if producer is not None:
        stage.run_for(_GRACE_S)
        sent = producer.stop()
    found = _judge(stage.arrivals(), sent, hooks, healthy=healthy, hang=hang, since=since, until=until)
    load = "a backlog" if per_s is None else f"{per_s:.0f} events/s"
    p99 = "" if per_s is None else f", p99 {found.p99_s:.3f} s"
    tell(
        f"{NAME}: {hanging} hang, {load}: {found.per_s:.0f}/s arrived, {found.healthy_per_s:.0f}/s at the healthy{p99}"
        f", at most {found.in_flight} in flight at one that hangs"
    )
    return found


def _judge(
    arrivals: list[Arrival],
    sent: dict[int, float],
    hooks: list[Hook],
    *,
    healthy: set[str],
    hang: set[str],
    since: float,
    until: float,
) -> Run:
    at_healthy = [arrival for arrival in arrivals if arrival.path in healthy]
    of_healthy = {number: at for number, at in sent.items() if hooks[number % len(hooks)].path in healthy}
    return Run(
        healthy_per_s=rate_of(at_healthy, since, until),
        p99_s=percentile(waits_of(of_healthy, at_healthy, since, until), 0.99),
        in_flight=max(
            (most_in_flight((a for a in arrivals if a.path == path), since, until) for path in hang), default=0
        ),
        per_s=rate_of(arrivals, since, until),
        left=len(of_healthy.keys() - {arrival.number for arrival in at_healthy}),
    )
