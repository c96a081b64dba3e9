"""What waits to be told to a Redis: the settlements and reports of all channels of this process."""

from collections import deque
from dataclasses import dataclass, field

from webhooks.transport.holder import process_token
from webhooks.transport.messages import Settlement, Take

#: Reports that wait to be told: in a process that never tells them, as a child of the prefork pool, no more than this.
_MAX_REPORTS = 10_000


@dataclass(frozen=True, slots=True)
class Outbox:
    """What this process has yet to tell one Redis. It outlives connections, so that nothing of it is lost with one."""

    settlements: deque[Settlement] = field(default_factory=deque)
    #: Takes whose reply never came: Redis may have done them.
    lost_takes: deque[Take] = field(default_factory=deque)
    #: What attempts tell of their endpoints. Of these it does no harm to lose one.
    reports: deque[Settlement] = field(default_factory=lambda: deque(maxlen=_MAX_REPORTS))


def take_out(waiting: deque[Settlement], most: int) -> list[Settlement]:
    """Take out the first of what waits; several threads may at one time."""
    batch: list[Settlement] = []
    try:
        while len(batch) < most:
            batch.append(waiting.popleft())
    except IndexError:  # another thread may have been quicker, so asking first would be no use
        pass
    return batch


#: By broker: all channels of this process to one Redis share one.
_outboxes: dict[object, Outbox] = {}


def outbox_of(broker: object) -> Outbox:
    """Return what all channels of this process to one Redis share."""
    return _outboxes.setdefault(broker, Outbox())


def report(queue: str, lane: str, *, ms: float | None, is_good: bool | None) -> None:
    """Tell of an attempt, with the next settlements: what its endpoint may have at one time follows from it.

    Args:
        queue: of the attempt's message.
        lane: of it.
        ms: milliseconds that the attempt took; None: that says nothing.
        is_good: False has the lane's share halved; None: the endpoint is not to blame, nor to praise.
    """
    verdict = "" if is_good is None else "good" if is_good else "bad"
    _tell(Settlement(lane, "report", "" if ms is None else f"{ms:.3f}", verdict, "", queue))


def limit_lane(queue: str, lane: str, rate: tuple[float, int] | None) -> None:
    """Tell a lane's limit as it is now, attempts per second and burst, or that it has none; with the next settlements.

    Not what a message or an attempt was begun with: that may be older than what another worker has told.
    """
    per_s, burst = rate or ("", "")
    _tell(Settlement(lane, "limit", str(per_s), str(burst), "", queue))


def hold_lane(queue: str, lane: str, seconds: float) -> None:
    """Have a lane give out nothing for so long; told with the next settlements. A later call counts instead."""
    _tell(Settlement(lane, "hold", f"{seconds:.3f}", "", "", queue))


def finish(queue: str, lane: str, tag: str) -> None:
    """Tell of the end of an attempt that `Channel.admit` let go; told with the next settlements."""
    for outbox in list(_outboxes.values()):
        outbox.settlements.append(Settlement(held_tag(tag), "done", "", lane, "", queue))


def held_tag(tag: str) -> str:
    """Return a tag that says which process holds what it stands for: `lua/parts/leases.lua` reads it."""
    return f"{process_token()}/{tag}"


def _tell(settlement: Settlement) -> None:
    for outbox in list(_outboxes.values()):  # a worker has one broker
        outbox.reports.append(settlement)
