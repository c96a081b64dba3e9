"""COTEvent: its rules, and the exact bytes that receivers get."""

import json
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

import pydantic_core
from bson import ObjectId, encode
from bson.dbref import DBRef
from pydantic import Field, PrivateAttr, StrictStr, ValidationError, field_validator, model_validator

from webhooks.errors import InvalidEvent
from webhooks.models.wire import (
    AS_WIRE,
    MAX_DEPTH,
    Id,
    Instant,
    KeyTwice,
    Unstorable,
    WireModel,
    explain,
    no_key_twice,
    parse_object_id,
    show,
    to_storable,
)

EventType = Literal["COTTask", "COTUser", "COTSurvey", "COTProperty", "COTNote", "Auth"]
EventName = Literal["create", "edit", "delete", "logout"]

#: Maximum bytes of an event's BSON: MongoDB's documents hold 16 MiB, and a log also holds a response.
_MAX_BSON_BYTES = 12 * 1024 * 1024
#: Maximum bytes of BSON per byte of JSON: a digit and a comma in a list take 13.
_BSON_PER_JSON = 7
#: Every digit → 0, and what a number that may not fit into 64 bits then contains; found in 2 us, a pattern takes 27.
_TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * 19


class COTEvent(WireModel):
    """One event (contract). Unknown keys are kept and sent, so that the platform can add some."""

    company: Id
    type: EventType
    event: EventName
    createdAt: Instant  # noqa: N815 - the contract's name
    #: The object itself, of any shape; None on logout.
    data: dict[StrictStr, Any] | None
    #: On logout ``{"userId": ObjectId, "timestamp": epoch}``, else anything.
    extraData: Any  # noqa: N815 - the contract's name
    #: JSON Pointer → ``{"previous": …, "changedTo": …}``; only an ``edit`` has the key.
    diff: dict[StrictStr, dict[StrictStr, Any]] | None = Field(default=None, validate_default=False)

    #: The JSON text, once known.
    _text: str | None = PrivateAttr(default=None)

    @field_validator("data", mode="before")
    @classmethod
    def _undo_reference(cls, value: object) -> object:
        # The BSON decoder turns data with the keys of a reference into a DBRef.
        return value.as_doc() if isinstance(value, DBRef) else value

    @field_validator("diff", mode="before")
    @classmethod
    def _check_diff(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            raise ValueError("must be an object; leave the key out if nothing was edited")  # noqa: TRY004 - for pydantic
        value = {pointer: cls._undo_reference(change) for pointer, change in value.items()}
        for pointer, change in value.items():
            if pointer and not str(pointer).startswith("/"):  # RFC 6901
                raise ValueError("has a key that is not a JSON Pointer")
            if not isinstance(change, Mapping) or not {"previous", "changedTo"} <= change.keys():
                raise ValueError('has a change without "previous" and "changedTo"')
        return value

    @model_validator(mode="after")
    def _diff_only_on_edit(self) -> "COTEvent":
        if self.event != "edit" and "diff" in self.model_fields_set:
            raise ValueError("diff: only an edit has one")
        return self

    def to_json(self) -> str:
        """Return the event as JSON text, keys in the given order."""
        text = self._private("_text")
        return super().to_json() if text is None else text

    def to_bson(self) -> dict[str, Any]:
        """Return the event as a log holds it in MongoDB."""
        stored = super().to_bson()
        user_id = _user_id(stored.get("extraData")) if self.event == "logout" else None
        if user_id is not None:
            stored["extraData"] = {**stored["extraData"], "userId": user_id}
        return stored


def describe_event(event: COTEvent) -> str:
    """Return type and event name, such as ``COTTask create``, for Flower and the logs."""
    return f"{event.type} {event.event}"


def _user_id(extra_data: object) -> ObjectId | None:
    """Return the user's id in a logout's ``extraData``; None if there is none."""
    try:
        return parse_object_id(extra_data["userId"]) if isinstance(extra_data, dict) else None
    except (KeyError, ValueError):
        return None


def parse_event(value: object, max_bytes: int) -> COTEvent:
    """Check a dict or a COTEvent; raise InvalidEvent with every field and reason, without values."""
    # A COTEvent is checked by its Python values: its wire form has strings for values that JSON does not have.
    given = dict(value) if isinstance(value, COTEvent) else value
    if not isinstance(given, dict):
        _refuse(f"it must be an object (a dict or a COTEvent), not a Python {show(type(value).__name__)}")
    try:
        wire = to_storable(given, max_items=max_bytes)  # each value takes at least one byte
        if isinstance(value, COTEvent):
            wire = value.to_wire()  # in the order in which its keys were given
        event = COTEvent.model_validate(wire, context=AS_WIRE)
    except Unstorable as error:
        _refuse(str(error))
    except ValidationError as error:
        _refuse(explain(error).replace("it: diff:", "diff:"))
    text = event.to_json()
    size = len(text.encode())
    if size > max_bytes:
        _refuse(f"its JSON has {size} bytes, more than WEBHOOKS_MAX_EVENT_BYTES allows ({max_bytes})")
    _check_fits(event, size)
    event._text = text
    return event


def parse_event_text(text: str, max_bytes: int) -> COTEvent:
    """Read and check an event; raise InvalidEvent also if it is not JSON, or has a duplicate key."""
    if (canonical := _read_canonical(text, max_bytes)) is not None:
        return canonical
    try:
        value = json.loads(text, object_pairs_hook=no_key_twice)
    except KeyTwice as error:
        _refuse(str(error))
    except RecursionError:
        _refuse("it is nested too deeply")
    except json.JSONDecodeError as error:
        _refuse(f"it is not JSON: {error}")
    except ValueError:  # Python limits the digits of an int
        _refuse("it is not JSON that can be read: a number has thousands of digits; send it as a string")
    return parse_event(value, max_bytes)


def _read_canonical(text: str, max_bytes: int) -> COTEvent | None:
    """Read an event whose text is exactly what we would write; return None for any other text.

    Our own producers send this form, but anyone may, so it is checked. Measured: 23 µs for 2 KB; the full check takes
    several times as long.
    """
    if "\\u0000" in text or text.count("[") + text.count("{") > MAX_DEPTH:
        return None
    try:
        body = text.encode()
        if len(body) > max_bytes or _LONG_NUMBER in body.translate(_TO_ZEROS):
            return None
        value = pydantic_core.from_json(body)
        # The fastest writer. Where it differs from `to_json`, the full check decides.
        if not isinstance(value, dict) or pydantic_core.to_json(value, inf_nan_mode="null") != body:
            return None
        event = COTEvent.model_validate(value, context=AS_WIRE)
    except (ValueError, RecursionError):  # of UTF-8, JSON or validation
        return None
    _check_fits(event, len(body))
    event._text = text
    return event


def _check_fits(event: COTEvent, json_bytes: int) -> None:
    """Make sure that MongoDB can hold a log of an event: what was sent and cannot be logged would be sent again.

    Raises:
        InvalidEvent: it cannot.
    """
    if json_bytes * _BSON_PER_JSON <= _MAX_BSON_BYTES:
        return
    size = len(encode(event.to_bson()))
    if size > _MAX_BSON_BYTES:
        _refuse(f"it has {size} bytes as MongoDB stores it, more than fit into a log ({_MAX_BSON_BYTES}): send less")


def _refuse(reason: str) -> NoReturn:
    raise InvalidEvent(f"invalid event: {reason}") from None
