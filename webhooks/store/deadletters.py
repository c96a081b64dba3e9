"""The collection ``deadletters``: one document per message that no worker could handle.

Owns what such a document holds, and publishing its message again. Decides neither which messages end here (`worker`
does) nor when one is sent again (an operator does, with ``webhooks dead``). Letters never expire by themselves.

A letter holds the message's payload, as that is its purpose. Logs must not: what may be logged is `DeadLetter.text`.
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

#: Bytes of a body that are kept. MongoDB takes 16 MB per document; base64 makes a third more of it.
MAX_BODY_BYTES = 8 * 1024 * 1024
#: Characters of the envelope's JSON that are kept; Celery's own headers have some hundred.
MAX_ENVELOPE_CHARS = 1024 * 1024
#: Characters of anything that is shown in one line.
_MAX_LINE = 500

#: What is kept of a message's properties: AMQP's own, less those that belong to one transport or to one passage
#: through it (`delivery_tag`, `delivery_info`, `body_encoding`) and those that stand in the envelope anyway.
_PROPERTIES = ("correlation_id", "reply_to", "delivery_mode", "priority", "message_id", "type", "app_id")

#: Fields that tell about a letter without its payload.
_SUMMARY = ("reason", "text", "task", "message_id", "queue", "created_at", "worker", "size_bytes", "is_cut", "times")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


#: What each field of a document must be; any hand may have changed it.
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

    #: It cannot be decoded, has a content type that is not accepted, or is no task message.
    UNREADABLE = "unreadable"
    #: No task has its name; perhaps a newer producer's.
    UNKNOWN_TASK = "unknown_task"
    #: Its headers or arguments are not those of its task.
    INVALID_TASK = "invalid_task"
    #: The event in it breaks the contract.
    INVALID_EVENT = "invalid_event"
    #: Our own code failed on it, at each try; the worker's log has the tracebacks.
    DEFECT = "defect"
    #: The pool process that had it died, each time.
    WORKER_LOST = "worker_lost"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message that no worker could handle, and why."""

    id: ObjectId
    reason: str
    #: Why, in one line without payload.
    text: str
    task: str | None
    #: Celery's id of the task; of a ``webhooks.deliver`` it is the event's.
    message_id: str | None
    #: The routing key, which is the name of the queue; without one, the queue where our own transport found it.
    queue: str | None
    created_at: datetime
    worker: str | None
    #: As it was before anything was cut.
    size_bytes: int
    body: bytes
    #: JSON of what stands around the body: ``content_type``, ``content_encoding``, ``headers``, ``properties``,
    #: ``exchange``. As text, since headers of strangers may hold what MongoDB cannot store.
    envelope: str
    #: Body or envelope was too large and lacks its end, so that the message cannot be sent again.
    is_cut: bool
    #: How often it came, as far as MongoDB knew when the letter was read.
    times: int = 0

    @classmethod
    def make(cls, reason: Reason, text: str, message: Message, worker: str | None) -> "DeadLetter":
        """Make the letter of a message.

        Args:
            reason: the kind.
            text: why, in words that hold no payload; made one line of bounded length here.
            message: as kombu handed it out; whatever its parts are.
            worker: who could not handle it.
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
        """Return the document that MongoDB keeps; anything that a message may hold can be stored."""
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
        """Return the letter that a document keeps.

        Raises:
            CannotResend: somebody has changed it by hand; the text names the field.
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
                f"dead letter {show(document['_id'])} is not as a worker wrote it, and cannot be used: "
                f"{', '.join(wrong)} was changed or is missing"
            )
        summary: dict[str, Any] = {field: document.get(field) for field in _SUMMARY}
        return cls(id=document["_id"], **summary, body=body, envelope=document["envelope"])

    def publish(self, channel: Any) -> None:
        """Publish the message again as it was: same body, headers and task id, to its own queue.

        Args:
            channel: kombu's, of any transport. When this returns the broker has the message, given that it confirms
                (celeryconfig sees to that).

        Raises:
            CannotResend: it cannot be published: it was cut, or does not say where to.
        """
        if self.is_cut:
            raise CannotResend(f"dead letter {self.id} was too large to be kept whole: it cannot be sent again")
        if self.queue is None:
            raise CannotResend(f"dead letter {self.id} does not say which queue it came from: it cannot be sent again")
        # Not kombu's way of reading JSON, which makes Python objects of some: it goes out again as it is.
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
    """Writes and reads dead letters. Every method raises StoreUnavailable when MongoDB cannot serve us now."""

    def __init__(self, database: Database[Document]) -> None:
        self._collection = database["deadletters"]

    def ensure_indexes(self) -> None:
        """Make the index, or find it made."""
        with store_errors():
            self._collection.create_index([("created_at", DESCENDING)], name="newest")
            self._collection.create_index([("message_id", ASCENDING)], name="message")

    def write(self, letter: DeadLetter) -> None:
        """Store a letter, acknowledged; of one that is stored already, count that it came again."""
        document = letter.to_document()
        del document["times"]
        with store_errors():
            self._collection.update_one(
                {"_id": document.pop("_id")}, {"$setOnInsert": document, "$inc": {"times": 1}}, upsert=True
            )

    def count(self, limit: int) -> int:
        """Return how many letters there are; counting ends at the limit."""
        with store_errors():
            return self._collection.count_documents({}, limit=limit)

    def read_newest(self, limit: int, reason: Reason | None = None) -> list[Document]:
        """Return what is known of the newest letters, newest first, without their payload.

        Args:
            limit: how many at most.
            reason: only these; None for all.
        """
        with store_errors():
            found = self._collection.find(_of(reason), dict.fromkeys(_SUMMARY, 1))
            return list(found.sort("created_at", DESCENDING).limit(limit))

    def find_of_message(self, message_id: str, limit: int) -> list[Document]:
        """Return what can be told of a message's letters, without their payloads, the newest first."""
        with store_errors():
            found = self._collection.find({"message_id": message_id}, dict.fromkeys(_SUMMARY, 1))
            return list(found.sort("created_at", DESCENDING).limit(limit))

    def read_ids(self, reason: Reason | None = None) -> list[ObjectId]:
        """Return the ids of all letters that there are now, the oldest first."""
        with store_errors():
            found = self._collection.find(_of(reason), {"_id": 1}).sort("created_at", ASCENDING)
            return [document["_id"] for document in found]

    def get(self, letter_id: ObjectId) -> DeadLetter | None:
        """Return a letter; None when there is none of this id."""
        with store_errors():
            document = self._collection.find_one({"_id": letter_id})
        return None if document is None else DeadLetter.from_document(document)

    def delete(self, letter_id: ObjectId) -> bool:
        """Delete a letter, and say whether it was there."""
        with store_errors():
            return bool(self._collection.delete_one({"_id": letter_id}).deleted_count)

    def delete_sent(self, letter: DeadLetter) -> None:
        """Delete a letter whose message was published again, unless that has come back as the same letter since."""
        with store_errors():
            self._collection.delete_one({"_id": letter.id, "times": letter.times})


def one_line(text: str) -> str:
    """Return a text as one printable line of bounded length, so that no stranger writes lines into our log."""
    printable = "".join(char if char.isprintable() else " " for char in text[: 2 * _MAX_LINE])
    line = " ".join(printable.split())
    return line if len(line) <= _MAX_LINE else line[: _MAX_LINE - 1] + "…"


def _make_id(message_id: object, body: bytes) -> ObjectId:
    """Return the id of a message's letter.

    It follows from Celery's id and the body, so that a worker that dies between storing and acking makes no second
    letter. Brokers have no name of their own for a message that outlives its being given out again. A message without
    an id gets a letter each time: two of them may be alike and yet be two.
    """
    if not isinstance(message_id, str):
        return ObjectId()
    return ObjectId(hashlib.sha256(message_id.encode(errors="replace") + b"\0" + body).digest()[:12])


def _read_names(headers: Mapping[str, Any], message: Message) -> Mapping[str, Any]:
    """Return what holds task and id: the headers, or in task protocol 1 the body."""
    if "task" in headers or message.errors:
        return headers
    try:
        body = message.decode()
    except Exception:  # noqa: BLE001 - nothing is known of it then
        return headers
    return body if isinstance(body, Mapping) else headers


def _as_published(headers: dict[str, Any], *, is_decompressed: bool) -> dict[str, Any]:
    """Return the headers without what kombu's way of handing a message out changed."""
    changed = {"redelivered"} | ({"compression"} if is_decompressed else set())
    return {name: value for name, value in headers.items() if name not in changed}


def _to_bytes(body: object) -> bytes:
    """Return a body as bytes; what is neither bytes nor text was never serialized, and is kept as JSON."""
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    text = body if isinstance(body, str) else "" if body is None else dumps(body)
    return text.encode(errors="surrogatepass")


def _name(value: object) -> str | None:
    return one_line(value) if isinstance(value, str) else None


def _of(reason: Reason | None) -> Document:
    return {} if reason is None else {"reason": reason.value}


def _is_envelope(text: str) -> bool:
    """Tell whether a text is what `DeadLetter.make` writes: what `publish` needs is there."""
    try:
        envelope = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(envelope, dict)
        and {"content_type", "content_encoding", "exchange"} <= envelope.keys()
        and all(isinstance(envelope.get(part), dict) for part in ("headers", "properties"))
    )
