"""The outbox of settlements and reports that all channels of this process share."""

from collections import deque
from dataclasses import dataclass, field

from webhooks.transport.holder import process_token
from webhooks.transport.messages import Settlement, Take

#: Limit for processes that never send their reports, such as children of the prefork pool.
_MAX_REPORTS = 10_000


@dataclass(frozen=True, slots=True)
class Outbox:
    """What this process still has to send to one Redis; it outlives connections."""

    settlements: deque[Settlement] = field(default_factory=deque)
    #: Takes whose reply was lost: Redis may have run them.
    lost_takes: deque[Take] = field(default_factory=deque)
    #: Reports, limits and holds of lanes. They may be lost.
    reports: deque[Settlement] = field(default_factory=lambda: deque(maxlen=_MAX_REPORTS))


def take_out(waiting: deque[Settlement], most: int) -> list[Settlement]:
    """Remove and return up to this many of the first settlements; thread-safe."""
    batch: list[Settlement] = []
    try:
        while len(batch) < most:
            batch.append(waiting.popleft())
    except IndexError:
        pass
    return batch


_outboxes: dict[object, Outbox] = {}


def outbox_of(broker: object) -> Outbox:
    """Return the outbox that all channels of this process to one Redis share."""
    return _outboxes.setdefault(broker, Outbox())


# What follows is sent with the next settlements.


def report(queue: str, lane: str, *, ms: float | None, is_good: bool | None) -> None:
    """Report an attempt, which changes its lane's concurrency window.

    Args:
        queue: the queue of the attempt's message.
        lane: the message's lane.
        ms: duration in milliseconds; None does not change the mean.
        is_good: True may grow the window, False halves it, None leaves it.
    """
    verdict = "" if is_good is None else "good" if is_good else "bad"
    _report(Settlement(lane, "report", "" if ms is None else f"{ms:.3f}", verdict, "", queue))


def limit_lane(queue: str, lane: str, rate: tuple[float, int] | None) -> None:
    """Set a lane's current rate limit, attempts per second and burst, or remove it.

    Do not pass the limit of a message: another worker may have set a newer one.
    """
    per_s, burst = rate or ("", "")
    _report(Settlement(lane, "limit", str(per_s), str(burst), "", queue))


def hold_lane(queue: str, lane: str, seconds: float) -> None:
    """Hold a lane for this time from now on; replaces an earlier hold."""
    _report(Settlement(lane, "hold", f"{seconds:.3f}", "", "", queue))


def finish(queue: str, lane: str, tag: str) -> None:
    """End an attempt that `Channel.admit` admitted."""
    for outbox in list(_outboxes.values()):
        outbox.settlements.append(Settlement(held_tag(tag), "done", "", lane, "", queue))


def held_tag(tag: str) -> str:
    """Return a tag with this process's token, which `lua/parts/leases.lua` reads."""
    return f"{process_token()}/{tag}"


def _report(settlement: Settlement) -> None:
    for outbox in list(_outboxes.values()):  # a worker has one broker
        outbox.reports.append(settlement)
