"""What goes to and fro between a channel and Redis, and what is read of a message on its way."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, NamedTuple

from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads


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


#: Content type of a `Message.unreadable`.
NO_MESSAGE = "application/x-no-message"


class Message(virtual.Message):
    """A message that knows the queue that it was taken from."""

    queue = ""

    @classmethod
    def unreadable(cls, raw: bytes, tag: str, channel: Any, error: Exception) -> "Message":
        """Wrap what a queue held and kombu cannot read, so that its consumer gets it as a message it cannot decode.

        Its body is what the queue held; kombu hands the error to the consumer's ``on_decode_error``.
        """
        message = cls({"content-type": NO_MESSAGE, "properties": {"delivery_tag": tag}}, channel=channel)
        message.body = message._raw = raw
        message.errors = [(type(error), error, error.__traceback__)]
        return message


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


def read_message(raw: bytes) -> dict[str, Any]:
    """Read a message as a queue holds it, and add the parts that clients other than Celery leave out.

    kombu takes messages without headers (as task protocol 1 has none); without properties it would be lost.

    Raises:
        ValueError: it is no message.
    """
    text = bytes_to_str(raw)
    # kombu looks at each object for types that Python has and JSON does not; most messages have none.
    payload = loads(text) if "__type__" in text or "\\" in text else json.loads(text)
    if not isinstance(payload, dict):
        raise ValueError("it is not an object")  # noqa: TRY004 - of the data, not of the code
    for part in ("headers", "properties"):
        payload[part] = payload.get(part) or {}
        if not isinstance(payload[part], dict):
            raise ValueError(f"its {part} are not an object")  # noqa: TRY004 - likewise
    return payload


def mark_redelivered(payload: Any) -> None:
    """Say in a message that it was taken before, as kombu says it; a part that is not there is left out."""
    if not isinstance(payload, dict):
        return
    properties = payload.get("properties")
    delivery_info = properties.get("delivery_info") if isinstance(properties, dict) else None
    for part in (payload.get("headers"), delivery_info):
        if isinstance(part, dict):
            part["redelivered"] = True


def split_entry(entry: bytes, queues: Sequence[str]) -> tuple[bytes, str]:
    """Take an entry of ``unacked`` that is not JSON apart: the message in it, and its queue.

    An entry that `TAKE` did not make counts as a message of the first queue.
    """
    for queue in queues:
        ending = end_of_entry(queue).encode()
        if entry.startswith(b"[") and entry.endswith(ending):
            return entry[1 : -len(ending)], queue
    return entry, queues[0]
