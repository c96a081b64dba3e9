"""Values that channel and scripts exchange, and reading and writing of messages."""

import re
from collections.abc import Sequence
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


#: An escape that a character of ``__type__`` may be written as.
_ESCAPED = re.compile(rb"\\u00[567]")
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
        """Decode the body as kombu does, except an inlined argument, which is not parsed."""
        body = self.body
        if self.content_type == JSON and isinstance(body, bytes) and LANE_HEADER in self.headers:
            text = read_inlined(body) if self.accept is None or JSON in self.accept else None
            if text is not None:
                return [text], {}, None
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
    if b"__type__" not in raw and not _ESCAPED.search(raw):
        try:
            return from_json(raw)
        except ValueError:  # kombu reads some that this does not, such as half of a surrogate pair
            pass
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
