"""Values that channel and scripts exchange, and reading and writing of messages."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from pydantic_core import from_json

from webhooks.transport.compact import JSON, read_inlined
from webhooks.transport.headers import DUE_HEADER, LANE_HEADER

#: Makes a message's JSON; like kombu, it also encodes Python types.
write_message = partial(dumps, separators=(",", ":"))


class Settlement(NamedTuple):
    """The arguments of `SETTLE` for one message or report."""

    tag: str
    act: str
    number: str = ""
    key: str = ""
    value: str | bytes = ""
    wake: str = ""


@dataclass(frozen=True, slots=True)
class Take:
    """A `TAKE` that was sent, and the settlements sent with it."""

    id: str
    queues: Sequence[str]
    most: int
    #: Number of replies before the take's.
    ahead: int = 0
    #: Whether a wait for a wake-up precedes it.
    waits: bool = False
    settlements: Sequence[Settlement] = ()

    @property
    def tags(self) -> list[str]:
        """The tags that its messages may have."""
        return [f"{self.id}:{number}" for number in range(1, self.most + 1)]


class Admission(NamedTuple):
    """A request to make an attempt without a message."""

    #: Unique among all workers' attempts in flight.
    tag: str
    lane: str
    #: The lane's rate limit, attempts per second and burst, if any.
    rate: tuple[float, int] | None


class Turn(IntEnum):
    """Whether an attempt may be made without a message."""

    LATER = 0
    NOW = 1
    #: Not now, but in a moment.
    SOON = 2


class LaneState(NamedTuple):
    """The state of one lane."""

    #: Messages in the lane.
    waiting: int
    in_flight: int
    #: The concurrency window.
    share: int
    #: Seconds for which the oldest message has waited; None if there is none.
    waited_s: float | None


#: ``__type__``, or an escape that one of its characters may be written as.
_SIGNS_OF_TYPES = (b"__type__", b"\\u005", b"\\u006", b"\\u007")
#: Content type of a `Message.unreadable`.
NO_MESSAGE = "application/x-no-message"


class Message(virtual.Message):
    """A message that has the name of its queue."""

    queue = ""

    @classmethod
    def unreadable(cls, raw: bytes, tag: str, channel: Any, error: Exception) -> "Message":
        """Wrap bytes that kombu cannot read; kombu passes the error to the consumer's ``on_decode_error``."""
        message = cls({"content-type": NO_MESSAGE, "properties": {"delivery_tag": tag}}, channel=channel)
        message.body = message._raw = raw
        message.errors = [(type(error), error, error.__traceback__)]
        return message

    def _decode(self) -> Any:
        """Decode the body as kombu does, without its steps that a body of JSON does not need."""
        body, is_accepted = self.body, self.accept is None or JSON in self.accept
        if self.content_type == JSON and is_accepted and isinstance(body, bytes):
            text = read_inlined(body) if LANE_HEADER in self.headers else None
            if text is not None:
                return [text], {}, None
            with suppress(ValueError):  # which kombu raises again, in its own type
                return _read_json(body)
        return super()._decode()


def end_of_entry(queue: str) -> str:
    """Return the end of a message's entry in ``unacked``: exchange and routing key that lead back to its queue."""
    return f', "", {dumps(queue)}]'


def due_at(message: dict[str, Any]) -> float | None:
    """Return a task message's ETA as a Unix time; None if it has no valid one."""
    eta = (message.get("headers") or {}).get("eta")
    if not isinstance(eta, str):
        return None
    try:
        at = datetime.fromisoformat(eta)
    except ValueError:  # Celery reports it
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def without_eta(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without its ETA, which would make Celery hold it in the worker's memory.

    The original is unchanged, as a retried publishing uses it again.
    """
    if due_at(message) is None:
        return message
    headers = {name: value for name, value in message["headers"].items() if name not in {DUE_HEADER, "eta"}}
    return {**message, "headers": headers}


def _read_json(raw: bytes) -> Any:
    """Read JSON as kombu does, which checks each object for a Python type that it encoded."""
    # The key of such an object can be written with escapes, and is rare.
    if not any(sign in raw for sign in _SIGNS_OF_TYPES):
        with suppress(ValueError):  # kombu reads some that this does not, such as half of a surrogate pair
            return from_json(raw)
    return loads(bytes_to_str(raw))


def read_message(raw: bytes) -> dict[str, Any]:
    """Read a queue's message, and add empty headers or properties, which clients other than Celery may omit.

    Raises:
        ValueError: it is no message.
    """
    payload = _read_json(raw)
    if not isinstance(payload, dict):
        raise ValueError("it is not an object")  # noqa: TRY004 - of the data, not of the code
    for part in ("headers", "properties"):
        payload[part] = payload.get(part) or {}
        if not isinstance(payload[part], dict):
            raise ValueError(f"its {part} are not an object")  # noqa: TRY004 - likewise
    return payload


def mark_redelivered(payload: Any) -> None:
    """Mark a message as redelivered in each part where kombu does so, if the part exists."""
    if not isinstance(payload, dict):
        return
    properties = payload.get("properties")
    delivery_info = properties.get("delivery_info") if isinstance(properties, dict) else None
    for part in (payload.get("headers"), delivery_info):
        if isinstance(part, dict):
            part["redelivered"] = True


def split_entry(entry: bytes, queues: Sequence[str]) -> tuple[bytes, str]:
    """Split an entry of ``unacked`` that is not JSON into message and queue; the first queue if it is not `TAKE`'s."""
    for queue in queues:
        ending = end_of_entry(queue).encode()
        if entry.startswith(b"[") and entry.endswith(ending):
            return entry[1 : -len(ending)], queue
    return entry, queues[0]
