"""What goes to and fro between a channel and Redis, and what is read of a message on its way."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, NamedTuple

from kombu.transport import virtual
from kombu.utils.json import dumps


class Settlement(NamedTuple):
    """What becomes of one message that was taken: `SETTLE` says what each field is."""

    tag: str
    act: str
    number: str = ""
    key: str = ""
    value: str | bytes = ""
    wake: str = ""


@dataclass(frozen=True, slots=True)
class Take:
    """One `TAKE` on its way, and what travels with it."""

    id: str
    queues: Sequence[str]
    most: int
    #: Replies before the take's own.
    ahead: int = 0
    #: Whether it waits for a wake-up first.
    waits: bool = False
    settlements: Sequence[Settlement] = ()

    @property
    def tags(self) -> list[str]:
        """The tags that its messages can have."""
        return [f"{self.id}:{number}" for number in range(1, self.most + 1)]


class Admission(NamedTuple):
    """An attempt that might be made without a message of its own."""

    #: Names the attempt among all that are in hand, of all workers.
    tag: str
    lane: str
    #: The lane's limit, attempts per second and burst; None for none.
    rate: tuple[float, int] | None


class Turn(IntEnum):
    """Whether an attempt may be made without a message of its own."""

    #: Not now, and nobody knows when.
    LATER = 0
    NOW = 1
    #: Not now, but at any moment.
    SOON = 2


class LaneState(NamedTuple):
    """How it stands with one lane."""

    #: Messages in it.
    waiting: int
    #: Messages of it in workers' hands.
    in_flight: int
    #: How many may be in hand at one time, if threads are free.
    share: int
    #: Seconds that the oldest one has waited; None where none does.
    waited_s: float | None


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


class Message(virtual.Message):
    """A message that knows the queue that it was taken from."""

    queue = ""


def end_of_entry(queue: str) -> str:
    """Give what follows a message in ``unacked``: exchange and routing key, such that it goes back whence it came."""
    return f', "", {dumps(queue)}]'


def due_at(message: dict[str, Any]) -> float | None:
    """Give a task message's ETA in seconds since 1970; None where it has none that can be read."""
    eta = (message.get("headers") or {}).get("eta")
    if not isinstance(eta, str):
        return None
    try:
        at = datetime.fromisoformat(eta)
    except ValueError:  # Celery refuses it with words of its own
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def without_eta(message: dict[str, Any]) -> dict[str, Any]:
    """Give the message as it is to be run: with an ETA Celery would hold it in the worker's memory until then.

    The message itself stays as it is: where publishing is tried again, it is used again.
    """
    if due_at(message) is None:
        return message
    return {**message, "headers": {**message["headers"], "eta": None}}


def mark_redelivered(payload: dict[str, Any]) -> None:
    """Say in a message that it was taken before, as kombu says it."""
    try:
        payload["headers"]["redelivered"] = True
        payload["properties"]["delivery_info"]["redelivered"] = True
    except (KeyError, TypeError):
        pass
