"""The collection ``deadletters``: one document per message that no worker could handle. They do not expire.

A dead letter holds the message's payload, which must not be logged; `DeadLetter.text` may be.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from bson import ObjectId
from kombu.message import Message
from kombu.utils.json import dumps
from pymongo import ASCENDING, DESCENDING
from pymongo.database import Database

from webhooks.errors import CannotResend
from webhooks.models import now
from webhooks.models.wire import show
from webhooks.store.mongo import Document, store_errors
from webhooks.transport.messages import NO_MESSAGE

#: Bytes of a body that are stored. MongoDB takes 16 MB per document, and base64 adds a third.
MAX_BODY_BYTES = 8 * 1024 * 1024
#: Characters of the envelope's JSON that are stored; Celery's own headers have some hundred.
MAX_ENVELOPE_CHARS = 1024 * 1024
#: Characters of a text that is shown in one line.
_MAX_LINE = 500

#: Stored properties of a message: those of AMQP, except transport state (`delivery_tag`, `delivery_info`,
#: `body_encoding`) and those in the envelope.
_PROPERTIES = ("correlation_id", "reply_to", "delivery_mode", "priority", "message_id", "type", "app_id")

#: Fields without payload.
_SUMMARY = ("reason", "text", "task", "message_id", "queue", "created_at", "worker", "size_bytes", "is_cut", "times")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


#: Valid values of each field; documents may be changed by hand.
_FIELDS: Mapping[str, Callable[[object], bool]] = {
    "reason": _is_text,
    "text": _is_text,
    "task": _is_text_or_none,
    "message_id": _is_text_or_none,
    "queue": _is_text_or_none,
    "worker": _is_text_or_none,
    "created_at": lambda value: isinstance(value, datetime),
    "size_bytes": lambda value: isinstance(value, int),
    "times": lambda value: isinstance(value, int),
    "is_cut": lambda value: isinstance(value, bool),
    "body": _is_text,
    "body_is_base64": lambda value: isinstance(value, bool),
    "envelope": _is_text,
}


class Reason(StrEnum):
    """Why no worker could handle a message."""

    #: It cannot be decoded, has an unaccepted content type, or is no task message.
    UNREADABLE = "unreadable"
    #: No task has its name; a newer producer may have sent it.
    UNKNOWN_TASK = "unknown_task"
    #: Its headers or arguments are not those of its task.
    INVALID_TASK = "invalid_task"
    #: The event in it breaks the contract.
    INVALID_EVENT = "invalid_event"
    #: Our code failed on it at each try; the worker's log has the tracebacks.
    DEFECT = "defect"
    #: The worker that had it died each time.
    WORKER_LOST = "worker_lost"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message that no worker could handle, and why."""

    id: ObjectId
    reason: str
    #: The reason in one line, without payload.
    text: str
    task: str | None
    #: Celery's task id; the event's id for ``webhooks.deliver``.
    message_id: str | None
    #: The routing key, which is the queue's name; without one, the queue where our transport found it.
    queue: str | None
    created_at: datetime
    worker: str | None
    #: Size of the uncut body.
    size_bytes: int
    body: bytes
    #: JSON of ``content_type``, ``content_encoding``, ``headers``, ``properties`` and ``exchange``. Text, because
    #: headers may hold what MongoDB cannot store.
    envelope: str
    #: Whether body or envelope was too large and was cut; such a message cannot be sent again.
    is_cut: bool
    #: How often the message came, when the letter was read.
    times: int = 0

    @classmethod
    def make(cls, reason: Reason, text: str, message: Message, worker: str | None) -> "DeadLetter":
        """Make the letter of a message.

        Args:
            reason: the kind.
            text: the reason without payload; cut to one line here.
            message: from kombu; its parts may be anything.
            worker: the worker that could not handle it.
        """
        headers = dict(message.headers) if isinstance(message.headers, Mapping) else {}
        delivery = message.delivery_info if isinstance(message.delivery_info, Mapping) else {}
        properties = message.properties if isinstance(message.properties, Mapping) else {}
        body = _to_bytes(message.body)
        named = _read_names(headers, message)
        envelope = {
            "content_type": message.content_type,
            "content_encoding": message.content_encoding,
            "headers": _as_published(headers, is_decompressed=not message.errors),
            "properties": {name: properties[name] for name in _PROPERTIES if name in properties},
            "exchange": delivery.get("exchange"),
        }
        envelope_text = dumps(envelope)
        return cls(
            id=_make_id(named.get("id"), body),
            reason=reason,
            text=one_line(text),
            task=_name(named.get("task")),
            message_id=_name(named.get("id")),
            queue=_name(delivery.get("routing_key") or getattr(message, "queue", None)),
            created_at=now(),
            worker=worker,
            size_bytes=len(body),
            body=body[:MAX_BODY_BYTES],
            envelope=envelope_text[:MAX_ENVELOPE_CHARS],
            is_cut=len(body) > MAX_BODY_BYTES or len(envelope_text) > MAX_ENVELOPE_CHARS,
        )

    def to_document(self) -> Document:
        """Return the document to store; MongoDB can store any message this way."""
        try:
            body, is_base64 = self.body.decode(), False
        except UnicodeDecodeError:
            body, is_base64 = base64.b64encode(self.body).decode(), True
        return {
            "_id": self.id,
            **{field: getattr(self, field) for field in _SUMMARY},
            "body": body,
            "body_is_base64": is_base64,
            "envelope": self.envelope,
        }

    @classmethod
    def from_document(cls, document: Document) -> "DeadLetter":
        """Read a stored letter.

        Raises:
            CannotResend: the document was changed by hand; the text names the field.
        """
        wrong = [field for field, is_right in _FIELDS.items() if not is_right(document.get(field))]
        if not wrong and not document["is_cut"] and not _is_envelope(document["envelope"]):
            wrong = ["envelope"]
        body = b""
        try:
            if not wrong:
                body = base64.b64decode(document["body"]) if document["body_is_base64"] else document["body"].encode()
        except ValueError:
            wrong = ["body"]
        if wrong:
            raise CannotResend(
                f"dead letter {show(document['_id'])} was changed by hand and cannot be used: "
                f"{', '.join(wrong)} was changed or is missing"
            )
        summary: dict[str, Any] = {field: document.get(field) for field in _SUMMARY}
        return cls(id=document["_id"], **summary, body=body, envelope=document["envelope"])

    def publish(self, channel: Any) -> None:
        """Publish the message again to its queue, with the same body, headers and task id.

        Args:
            channel: of kombu, with publisher confirms (`celeryconfig` sets them).

        Raises:
            CannotResend: the message was cut, has no queue, or is no Celery message.
        """
        if self.is_cut:
            raise CannotResend(f"dead letter {self.id} was too large to be kept whole: it cannot be sent again")
        if self.queue is None:
            raise CannotResend(f"dead letter {self.id} does not say which queue it came from: it cannot be sent again")
        # Not kombu's `loads`, which turns some JSON into Python objects.
        envelope = json.loads(self.envelope)
        if envelope["content_type"] == NO_MESSAGE:
            raise CannotResend(f"dead letter {self.id} is no message that Celery reads: its producer must send it anew")
        properties = envelope["properties"]
        message = channel.prepare_message(
            self.body,
            priority=properties.pop("priority", None),
            content_type=envelope["content_type"],
            content_encoding=envelope["content_encoding"],
            headers=envelope["headers"],
            properties=properties,
        )
        channel.basic_publish(message, exchange=envelope["exchange"] or "", routing_key=self.queue)


class DeadLetterStore:
    """Writes and reads dead letters. Every method raises StoreUnavailable when MongoDB is away."""

    def __init__(self, database: Database[Document]) -> None:
        self._collection = database["deadletters"]

    def ensure_indexes(self) -> None:
        """Create missing indexes."""
        with store_errors():
            self._collection.create_index([("created_at", DESCENDING)], name="newest")
            self._collection.create_index([("message_id", ASCENDING)], name="message")

    def write(self, letter: DeadLetter) -> None:
        """Store a letter; if it is stored already, count that it came again."""
        document = letter.to_document()
        del document["times"]
        with store_errors():
            self._collection.update_one(
                {"_id": document.pop("_id")}, {"$setOnInsert": document, "$inc": {"times": 1}}, upsert=True
            )

    def count(self, limit: int) -> int:
        """Count letters up to the limit."""
        with store_errors():
            return self._collection.count_documents({}, limit=limit)

    def read_newest(self, limit: int, reason: Reason | None = None) -> list[Document]:
        """Return the newest letters without their payload, newest first; None asks for all reasons."""
        with store_errors():
            found = self._collection.find(_of(reason), dict.fromkeys(_SUMMARY, 1))
            return list(found.sort("created_at", DESCENDING).limit(limit))

    def find_of_message(self, message_id: str, limit: int) -> list[Document]:
        """Return what can be told of a message's letters, without their payloads, the newest first."""
        with store_errors():
            found = self._collection.find({"message_id": message_id}, dict.fromkeys(_SUMMARY, 1))
            return list(found.sort("created_at", DESCENDING).limit(limit))

    def read_ids(self, reason: Reason | None = None) -> list[ObjectId]:
        """Return the ids of all letters, oldest first."""
        with store_errors():
            found = self._collection.find(_of(reason), {"_id": 1}).sort("created_at", ASCENDING)
            return [document["_id"] for document in found]

    def get(self, letter_id: ObjectId) -> DeadLetter | None:
        """Return a letter; None if there is none.

        Raises:
            CannotResend: the document was changed by hand.
        """
        with store_errors():
            document = self._collection.find_one({"_id": letter_id})
        return None if document is None else DeadLetter.from_document(document)

    def delete(self, letter_id: ObjectId) -> bool:
        """Delete a letter; return whether it existed."""
        with store_errors():
            return bool(self._collection.delete_one({"_id": letter_id}).deleted_count)

    def delete_sent(self, letter: DeadLetter) -> None:
        """Delete a letter whose message was published again, unless the message has come back since."""
        with store_errors():
            self._collection.delete_one({"_id": letter.id, "times": letter.times})


def one_line(text: str) -> str:
    """Return a text as one printable line of bounded length, so that input cannot forge log lines."""
    printable = "".join(char if char.isprintable() else " " for char in text[: 2 * _MAX_LINE])
    line = " ".join(printable.split())
    return line if len(line) <= _MAX_LINE else line[: _MAX_LINE - 1] + "…"


def _make_id(message_id: object, body: bytes) -> ObjectId:
    """Return the id of a message's letter.

    It is a hash of task id and body, so that a redelivered message makes no second letter. A message without an id
    gets a new letter each time, because two equal messages may be two.
    """
    if not isinstance(message_id, str):
        return ObjectId()
    return ObjectId(hashlib.sha256(message_id.encode(errors="replace") + b"\0" + body).digest()[:12])


def _read_names(headers: Mapping[str, Any], message: Message) -> Mapping[str, Any]:
    """Return the mapping with task and id: the headers, or the body in task protocol 1."""
    if "task" in headers or message.errors:
        return headers
    try:
        body = message.decode()
    except Exception:  # noqa: BLE001 - kombu raises whatever its decoders do
        return headers
    return body if isinstance(body, Mapping) else headers


def _as_published(headers: dict[str, Any], *, is_decompressed: bool) -> dict[str, Any]:
    """Return the headers without those that kombu changes when it delivers a message."""
    changed = {"redelivered"} | ({"compression"} if is_decompressed else set())
    return {name: value for name, value in headers.items() if name not in changed}


def _to_bytes(body: object) -> bytes:
    """Return a body as bytes; one that was never serialized becomes JSON."""
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    text = body if isinstance(body, str) else "" if body is None else dumps(body)
    return text.encode(errors="surrogatepass")


def _name(value: object) -> str | None:
    return one_line(value) if isinstance(value, str) else None


def _of(reason: Reason | None) -> Document:
    return {} if reason is None else {"reason": reason.value}


def _is_envelope(text: str) -> bool:
    """Tell whether a text is an envelope that `publish` can use."""
    try:
        envelope = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(envelope, dict)
        and {"content_type", "content_encoding", "exchange"} <= envelope.keys()
        and all(isinstance(envelope.get(part), dict) for part in ("headers", "properties"))
    )
