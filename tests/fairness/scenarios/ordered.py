"""Ordered webhooks: in the order of acceptance, one at a time, through failures and the death of a worker.

Two workers. Attempts fail by chance, and are tried again after a second. In the middle of the load one worker is
SIGKILLed, and started again soon after. Half of the companies hand in with our package, half with plain Celery.
"""

import time
from pathlib import Path

from bson import ObjectId

from tests.fairness.judge import judge_order
from tests.fairness.producer import Plan
from tests.fairness.receiver import Behaviour
from tests.fairness.rows import Row, known, none_of
from tests.fairness.sizes import Size, Tell
from tests.fairness.stage import TYPES, Hook, Stage

NAME = "ordered"

_ENDPOINT = Behaviour(delay_s=0.02, fail_share=0.02)
_RETRY_DELAY_S = 1
_DEAD_FOR_S = 2.0
#: In all, whatever happens.
_FULL_S = 900.0
_NOISY_S = 40.0


def run(folder: Path, size: Size, tell: Tell) -> list[Row]:
    """Run it."""
    settings = {
        # Short: what the dead worker held comes back after several of these.
        "total_timeout_s": min(size.total_timeout_s, 5),
        "mongodb_timeout_s": min(size.mongodb_timeout_s, 5),
        "retry_delay_s": _RETRY_DELAY_S,
        "sweep_interval_s": 1,
        "concurrency": 32,
    }
    companies = [ObjectId() for _ in range(size.ordered_companies)]
    hooks = [
        Hook(f"/company/{number}/{kind}", company, kind, {"ordered": True})
        for kind in TYPES[: size.ordered_webhooks]
        for number, company in enumerate(companies)
    ]
    ways = ("delay", "plain")
    with Stage(folder, settings) as stage:
        stage.add(hooks)
        stage.behave(_ENDPOINT, *(hook.path for hook in hooks))
        stage.start_workers(2)
        begun = time.monotonic()
        streams = tuple(hook.stream(way=ways[companies.index(hook.company) % 2]) for hook in hooks)
        producer = stage.start_producer(Plan(streams, size.ordered_per_s, size.ordered_events))
        stage.run_for(size.ordered_events / size.ordered_per_s / 2)
        stage.workers[0].kill()
        killed_at = time.monotonic()
        tell(f"{NAME}: a worker is killed")
        time.sleep(_DEAD_FOR_S)
        stage.start_workers(2)
        sent = producer.wait(120 + 2 * size.ordered_events / size.ordered_per_s)
        at_most_s = _NOISY_S if size.is_noisy else _FULL_S
        # Each event has one success to come; a repeat after the kill may stand for one that is missing still.
        stage.run_while_growing(lambda: _count_ok(stage), len(sent), size.patience_s, at_most_s)
        stage.run_until(lambda: stage.database["deliveries"].count_documents({}) == 0, size.patience_s)
        arrivals = stage.arrivals()
    accepted: dict[str, list[int]] = {hook.path: [] for hook in hooks}
    for number in sent:
        accepted[hooks[number % len(hooks)].path].append(number)
    order = judge_order(accepted, arrivals, [killed_at])
    ok = [arrival for arrival in arrivals if arrival.is_ok]
    took_s = max((arrival.arrived_at for arrival in ok), default=begun) - begun
    tell(f"{NAME}: {len(ok):,} successes of {len(sent):,} events, the last one after {took_s:.0f} s")
    about = f"{len(sent):,} events, {len(hooks)} webhooks"
    return [
        none_of(NAME, f"{about}: lost", order.lost or ([] if sent else ["nothing was accepted"])),
        none_of(NAME, f"{about}: first successes out of order", order.misplaced),
        none_of(NAME, f"{about}: attempts after a later event's", order.interleaved),
        none_of(NAME, f"{about}: two in flight at one webhook", order.overlapping),
        known(NAME, f"{about}: failed attempts", sum(arrival.status == 500 for arrival in arrivals)),
        known(NAME, f"{about}: repeats after a success", order.repeats),
        known(NAME, f"{about}: s from the first to the last", took_s),
    ]


def _count_ok(stage: Stage) -> int:
    return sum(counts["ok"] for counts in stage.counts().values())
