"""The wire form (JSON) and the stored form (BSON) of the contract's objects, and what can be stored at all."""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Final, Self, cast

from bson import ObjectId
from bson.dbref import DBRef
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler as Handler

#: Nesting levels of an event. MongoDB's limit is 100; a log adds one, and tools that copy logs add more.
MAX_DEPTH = 90

#: Characters of `show` and of a path.
_MAX_SHOWN = 80
_MAX_PATH = 200

#: Context for `model_validate`: the value is in wire form and will not be changed.
AS_WIRE: Final[dict[str, Any]] = {"is_wire": True}

#: What MongoDB stores as it is, where the wire form has text.
_STORED_TYPED = (ObjectId, datetime)
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_HEX_24 = re.compile(r"[0-9a-fA-F]{24}", re.ASCII)


class KeyTwice(ValueError):
    """A key appears twice in one object."""


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, as an ``object_pairs_hook``; raise KeyTwice if a key appears twice."""
    # Python uses the last value, other readers the first: the intended one is unknown.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise KeyTwice("a key appears twice in one object")
    return found


def now() -> datetime:
    """Return the present instant in UTC, in whole milliseconds as MongoDB and the wire hold it."""
    instant = datetime.now(UTC)
    return instant.replace(microsecond=instant.microsecond // 1000 * 1000)


def format_instant(instant: datetime) -> str:
    """Write an aware datetime as ``YYYY-MM-DDTHH:mm:ss.SSSZ`` (contract)."""
    utc = instant.astimezone(UTC)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03}Z".rjust(24, "0")


def parse_instant(value: object) -> datetime:
    """Read ``YYYY-MM-DDTHH:mm:ss.SSSZ`` or accept an aware datetime; raise ValueError for the user to read."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a date must have a time zone")
        return value
    if not isinstance(value, str) or not _INSTANT.fullmatch(value):
        raise ValueError("must be a date as YYYY-MM-DDTHH:mm:ss.SSSZ, with milliseconds and Z")
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("is not an existing date and time") from None


def parse_object_id(value: object) -> ObjectId:
    """Read 24 hexadecimal digits or accept an ObjectId; raise ValueError for the user to read."""
    if isinstance(value, ObjectId):
        return value
    if isinstance(value, str) and _HEX_24.fullmatch(value):
        return ObjectId(value)
    raise ValueError("must be an ObjectId: 24 hexadecimal digits")


Id = Annotated[ObjectId, BeforeValidator(parse_object_id)]
Instant = Annotated[datetime, BeforeValidator(parse_instant)]


def to_json(wire: object) -> str:
    """Write a wire form as JSON, without white space or escapes for non-ASCII characters.

    Receivers get this text. It must not change: all attempts of a delivery send the same bytes.
    """
    return json.dumps(wire, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def document_json(document: Mapping[str, object]) -> str:
    """Return a stored document as JSON, whatever values it has."""
    wire = to_wire(document)
    try:
        return to_json(wire)
    except ValueError:
        return to_json(_without_nan(wire))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def to_wire(value: object) -> Any:
    """Convert a value to its wire form. Types that JSON does not have become strings; never fails on a type."""
    # The most frequent types first, which takes a quarter less time for a log.
    if value is None or isinstance(value, (str, bool, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_wire(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_wire(item) for item in value]
    if isinstance(value, int):
        return int(value)  # bson's Int64 is an int with a repr of its own
    if isinstance(value, datetime):
        return format_instant(value if value.tzinfo else value.replace(tzinfo=UTC))
    if isinstance(value, DBRef):
        return to_wire(value.as_doc())
    return str(value)


def make_safe(text: str) -> str:
    """Escape characters that are not printable, such as terminal escapes, line ends and changes of direction."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def show(value: object) -> str:
    """Shorten and escape untrusted text, such as a key or an id, for messages."""
    text = str(value)
    return make_safe(text[:_MAX_SHOWN]) + ("…" if len(text) > _MAX_SHOWN else "")


class Unstorable(Exception):
    """JSON or BSON cannot hold a value; the text is its dotted path and the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        #: The innermost first.
        self.keys: list[object] = []

    def __str__(self) -> str:
        path = ".".join(show(key) for key in reversed(self.keys))
        if len(path) > _MAX_PATH:
            path = path[:_MAX_PATH] + "…"
        return f"{path}: {self.reason}" if path else f"it {self.reason}"


def to_storable(value: dict[Any, Any], max_items: int) -> dict[str, Any]:
    """Convert a tree to its wire form; raise Unstorable for the first value that JSON or BSON cannot hold.

    Args:
        value: dicts and lists, with ObjectIds and aware datetimes.
        max_items: how many values it may hold: a small object can be an endless text if one list appears many times.
    """
    items_left = max_items

    def copy(item: Any, depth: int) -> Any:
        nonlocal items_left
        kind = type(item)
        # The most frequent types first, and without a call: twice as fast for an event of 4 KB.
        if (kind is str and item.isascii()) or item is None or kind is bool:
            return item
        if (kind is int and _INT64_MIN <= item <= _INT64_MAX) or (kind is float and math.isfinite(item)):
            return item
        if isinstance(item, dict):
            reason, children = _why_bad_keys(item), item.items()
        elif isinstance(item, list | tuple):
            reason, children = None, enumerate(item)
        else:
            reason, children = _why_unstorable(item), None
        if reason:
            raise Unstorable(reason)
        if children is None:
            return to_wire(item)
        items_left -= len(item)
        if depth > MAX_DEPTH:
            raise Unstorable(f"is nested deeper than {MAX_DEPTH} levels")
        if items_left < 0:
            raise Unstorable(f"holds more than {max_items} values")
        copied: dict[Any, Any] = {}
        key = None
        try:
            for key, one in children:
                copied[key] = copy(one, depth + 1)
        except Unstorable as error:
            if items_left >= 0:  # else it is about the whole tree
                error.keys.append(key)
            raise
        return copied if isinstance(item, dict) else list(copied.values())

    return copy(value, 1)


def _why_unstorable(item: object) -> str | None:
    if isinstance(item, str):
        return "has half of a surrogate pair, which UTF-8 cannot hold" if _has_surrogate(item) else None
    if isinstance(item, ObjectId):
        return None
    if isinstance(item, int):
        # Not `in range(…)`, which counts through all numbers for a subclass of int such as bson's Int64.
        is_int64 = _INT64_MIN <= item <= _INT64_MAX
        return None if is_int64 else "is a number beyond 64 bits, which MongoDB cannot hold; send it as a string"
    if isinstance(item, float):
        return None if math.isfinite(item) else "is not a finite number, or too large for one; send it as a string"
    if not isinstance(item, datetime):
        return f"is a Python {type(item).__name__}, which JSON does not have"
    if item.utcoffset() is None:
        return "is a date without a time zone"
    try:
        item.astimezone(UTC)
    except OverflowError:
        return "is a date that in UTC is not within the years 1 to 9999"
    return None


def _why_bad_keys(keys: dict[Any, Any]) -> str | None:
    try:
        text = "".join(keys)
    except TypeError:
        kind = next(type(key).__name__ for key in keys if not isinstance(key, str))
        return f"has a key that is not a string but a Python {kind}"
    if "\x00" in text:
        return "has a key with a NUL character, which MongoDB cannot hold"
    return "has a key with half of a surrogate pair, which UTF-8 cannot hold" if _has_surrogate(text) else None


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


class WireModel(BaseModel):
    """Base of the contract's objects: keeps every key, in the given order.

    Built from JSON, a MongoDB document or keywords. Immutable, because its wire form is computed once.
    """

    model_config = ConfigDict(extra="allow", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True)

    _wire: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep_wire(cls, value: object, handler: Handler[Self], info: ValidationInfo) -> Self:
        if isinstance(value, DBRef):  # the BSON decoder makes one of an object with the keys of a reference
            value = value.as_doc()
        model = handler(value)
        if info.context is AS_WIRE:
            model._wire = cast("dict[str, Any]", value)
        elif isinstance(value, Mapping):
            try:
                model._wire = to_wire(value)
            except RecursionError:
                raise ValueError("is nested too deeply") from None
            except OverflowError:
                raise ValueError("has a date that in UTC is not within the years 1 to 9999") from None
        return model

    @classmethod
    def _build(cls, fields: dict[str, Any]) -> Self:
        """Return an object with all its fields, as `model_construct`, which takes seven times as long."""
        made = cls.__new__(cls)
        for name, value in (
            ("__dict__", fields),
            ("__pydantic_fields_set__", set(fields)),
            ("__pydantic_extra__", {}),
            ("__pydantic_private__", {"_wire": {}}),
        ):
            object.__setattr__(made, name, value)
        return made

    @model_serializer(mode="plain")
    def _serialize(self) -> dict[str, Any]:
        return self.to_wire()

    def to_wire(self) -> dict[str, Any]:
        """Return the object as JSON holds it; not to be changed."""
        return self._private("_wire")

    def _private(self, name: str) -> Any:
        # As an attribute, which pydantic looks for in many places, it takes 2 µs.
        return cast("dict[str, Any]", self.__pydantic_private__)[name]

    def to_json(self) -> str:
        """Return the object as JSON text, keys in the given order."""
        return to_json(self.to_wire())

    def to_bson(self) -> dict[str, Any]:
        """Return the object as MongoDB stores it: the contract's ids are ObjectIds, its instants dates."""
        stored, typed = dict(WireModel.to_wire(self)), self.__dict__
        for key, name in _names(type(self)).items():
            if key in stored:
                value = typed[name]
                if isinstance(value, _STORED_TYPED):
                    stored[key] = value
                elif isinstance(value, WireModel):
                    stored[key] = value.to_bson()
        return stored


@cache
def _names(model: type[BaseModel]) -> dict[str, str]:
    """Map a model's keys to its attributes."""
    return {field.alias or name: name for name, field in model.model_fields.items()}


def explain(error: ValidationError) -> str:
    """Format a validation error as one line: each field and reason, without values, which may be secret."""
    reasons = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        field = ".".join(show(part) for part in item["loc"]) or "it"
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        message = "is missing" if item["type"] == "missing" else message[0].lower() + message[1:]
        reasons.append(f"{field}: {message}")
    return "; ".join(reasons)
