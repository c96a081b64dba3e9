"""How much of everything: at full size, and so that CI is soon over. Seconds where nothing else is said."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.fairness.rows import Row

#: Gets a line of progress.
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    name: str
    #: Whether figures are held to the coarse bars alone: the machine does other things meanwhile.
    is_noisy: bool
    #: The product's settings: how long an attempt may take, and MongoDB. What a dead worker held, and when it comes
    #: back, follows from them.
    total_timeout_s: float
    mongodb_timeout_s: float

    # ── hanging ──
    endpoints: int
    #: How many of them hang, one run after another. Always compared with none.
    hanging: tuple[int, ...]
    #: Until figures count, and while they do.
    hanging_warm_s: float
    hanging_s: float
    #: A backlog has so many events for each second of a run: more than one worker can do.
    backlog_per_s: float

    # ── loud-company ──
    loud_events: int
    loud_s: float
    quiet_every_s: float

    # ── rate-limit ──
    rate_s: float

    # ── ordered ──
    ordered_events: int
    ordered_companies: int
    #: Webhooks of each company.
    ordered_webhooks: int
    ordered_per_s: float

    # ── pause ──
    #: How the endpoint is down, one run after another: see `receiver.Behaviour.kind`.
    downs: tuple[str, ...]
    kept_events: int
    #: At least so long down after it was paused: for the probes.
    paused_s: float

    # ── slow ──
    #: The product's setting for this scenario: slow endpoints take most of it.
    slow_timeout_s: float
    slow_s: float
    #: Slots of the worker → companies, each with slow endpoints.
    slow_slots: Mapping[int, int]

    # ── All ──
    #: Without any progress, until nothing more is hoped for.
    patience_s: float

    def has_failed(self, row: Row) -> bool:
        """Say whether a row is too bad for this size."""
        return not (row.is_tolerable if self.is_noisy else row.is_good)


FULL = Size(
    "full",
    is_noisy=False,
    total_timeout_s=15,
    mongodb_timeout_s=10,
    endpoints=20,
    hanging=(1, 5),
    # Twice the time-out: the first attempts have run into it, and what was learnt of that has had time to tell.
    hanging_warm_s=35,
    hanging_s=30,
    backlog_per_s=3_000,
    loud_events=200_000,
    loud_s=60,
    quiet_every_s=0.2,
    rate_s=30,
    ordered_events=10_000,
    ordered_companies=10,
    ordered_webhooks=5,
    ordered_per_s=150,
    downs=("answer", "hang"),
    kept_events=10_000,
    paused_s=10,
    slow_timeout_s=5,
    slow_s=40,
    slow_slots={16: 4, 256: 20},
    patience_s=60,
)
CI = replace(
    FULL,
    name="ci",
    is_noisy=True,
    total_timeout_s=2,
    mongodb_timeout_s=3,
    hanging=(5,),
    hanging_warm_s=4,
    hanging_s=3,
    loud_events=20_000,
    loud_s=5,
    rate_s=4,
    ordered_events=300,
    ordered_companies=3,
    ordered_webhooks=4,
    ordered_per_s=40,
    downs=("answer",),
    kept_events=500,
    paused_s=5,
    slow_timeout_s=2,
    slow_s=8,
    slow_slots={16: 4},
    patience_s=20,
)
SIZES = {size.name: size for size in (FULL, CI)}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of unfairness."""

    name: str
    #: Runs it in a folder of its own that is not there yet.
    run: Callable[[Path, Size, Tell], list[Row]]
    #: Whether its figures need a machine that does nothing else.
    measures_speed: bool = False
