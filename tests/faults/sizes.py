"""How much of everything: at full size, and so that CI is soon over."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    name: str
    #: Of the producer; each event goes to all of a row's webhooks.
    events_per_s: float
    #: Load before the fault and after it.
    before_s: float
    after_s: float
    #: Workers killed one after another, and seconds from one to the next.
    kills: int
    kill_every_s: float
    #: Workers stopped one after another.
    stops: int
    #: A server hangs, memory is full, a receiver is away, a server is down.
    pause_s: float
    full_s: float
    away_s: float
    down_s: float
    #: How often the reply of each kind of write is dropped.
    drops: int
    #: The product's setting, of which it derives when what a dead worker held comes back.
    mongodb_timeout_s: float
    #: Rows under load at one time, and rows at one time in all.
    slots: int
    rows: int


FULL = Size(
    "full", events_per_s=105, before_s=8, after_s=8, kills=20, kill_every_s=2.5, stops=6, pause_s=30, full_s=10,
    away_s=20, down_s=5, drops=8, mongodb_timeout_s=10, slots=1, rows=6,
)  # fmt: skip
CI = Size(
    "ci", events_per_s=32, before_s=3, after_s=3, kills=4, kill_every_s=2.5, stops=2, pause_s=8, full_s=4,
    away_s=5, down_s=2, drops=1, mongodb_timeout_s=5, slots=3, rows=10,
)  # fmt: skip
SIZES = {size.name: size for size in (FULL, CI)}
