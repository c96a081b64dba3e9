"""The two forms of an object: wire (JSON: ids and instants are strings) and stored (BSON: ObjectIds and dates).

Owns the conversion between them, the order of keys, and the rule of what can be stored at all.
"""

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

#: Levels of nesting that an event may have. MongoDB documents a limit of 100 levels; a log puts its event one level
#: down and tools that copy logs add some of their own.
MAX_DEPTH = 90

#: Characters that `show` and a place in an event may have: enough to find it, too few to fill a log.
_MAX_SHOWN = 80
_MAX_PLACE = 200

#: Context for `model_validate`: what is given is a wire form by itself, and nobody will change it.
AS_WIRE: Final[dict[str, Any]] = {"is_wire": True}

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_HEX_24 = re.compile(r"[0-9a-fA-F]{24}", re.ASCII)


def now() -> datetime:
    """Return the present instant, in UTC, cut to the milliseconds that MongoDB and the wire keep."""
    instant = datetime.now(UTC)
    return instant.replace(microsecond=instant.microsecond // 1000 * 1000)


def format_instant(instant: datetime) -> str:
    """Write an aware datetime as ``YYYY-MM-DDTHH:mm:ss.SSSZ`` (contract)."""
    utc = instant.astimezone(UTC)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03}Z".rjust(24, "0")


def parse_instant(value: object) -> datetime:
    """Read ``YYYY-MM-DDTHH:mm:ss.SSSZ``, or take an aware datetime as it is.

    Raises:
        ValueError: in words fit for a user, for anything else.
    """
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a date must have a time zone")
        return value
    if not isinstance(value, str) or not _INSTANT.fullmatch(value):
        raise ValueError("must be a date as YYYY-MM-DDTHH:mm:ss.SSSZ, with milliseconds and Z")
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("is not a day and time that exist") from None


def parse_object_id(value: object) -> ObjectId:
    """Read 24 hexadecimal digits, or take an ObjectId as it is.

    Raises:
        ValueError: in words fit for a user, for anything else.
    """
    if isinstance(value, ObjectId):
        return value
    if isinstance(value, str) and _HEX_24.fullmatch(value):
        return ObjectId(value)
    raise ValueError("must be an ObjectId: 24 hexadecimal digits")


Id = Annotated[ObjectId, BeforeValidator(parse_object_id)]
Instant = Annotated[datetime, BeforeValidator(parse_instant)]


def to_json(wire: object) -> str:
    """Write a wire form as JSON: no white space, characters as they are.

    This is what receivers get, so it must not change: an attempt and its retries are equal byte for byte.
    """
    return json.dumps(wire, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def to_wire(value: object) -> Any:
    """Turn a stored or Python value into its wire form: ids and instants to strings, all else as it is.

    Tolerant on purpose, as it also reads documents that somebody else wrote: an unknown type becomes its text.
    """
    if isinstance(value, Mapping):
        return {str(key): to_wire(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_wire(item) for item in value]
    if value is None or isinstance(value, str | bool | float):
        return value
    if isinstance(value, int):
        return int(value)  # bson's Int64 is an int with a repr of its own
    if isinstance(value, datetime):
        return format_instant(value if value.tzinfo else value.replace(tzinfo=UTC))
    if isinstance(value, DBRef):
        # Data of the form {"$ref": …, "$id": …} comes back from the BSON decoder as this class.
        return to_wire(value.as_doc())
    return str(value)


def make_safe(text: str) -> str:
    """Write what is not printable, such as terminal escapes, line ends and changes of direction, as Python does."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def show(value: object) -> str:
    """Write what a stranger chose, such as a key or an id, such that it can neither fill a log nor steer a terminal."""
    text = str(value)
    return make_safe(text[:_MAX_SHOWN]) + ("…" if len(text) > _MAX_SHOWN else "")


#: Where something stands: its parent's place and its own key; None for the root. Written out only where needed, as the
#: keys of an event may be long and many things may stand below one.
_Place = tuple["_Place", object] | None


class _NotPlainError(Exception):
    pass


def copy_plain(value: dict[Any, Any], max_items: int) -> dict[str, Any] | None:
    """Copy what is a wire form already, as most events that are handed in are.

    Args:
        value: a tree as a producer built it.
        max_items: as for `find_unstorable`.

    Returns:
        None where there is more to be done, or anything that `find_unstorable` would find. Measured: with this 45 µs
        instead of 115 to check an event of 2.7 KB.
    """
    items_left = max_items

    def copy(item: Any, depth: int) -> Any:
        nonlocal items_left
        kind = type(item)
        if kind is str:
            if item.isascii() or not _has_surrogate(item):
                return item
        elif item is None or kind is bool:
            return item
        elif kind is int:
            if _INT64_MIN <= item <= _INT64_MAX:
                return item
        elif kind is float:
            if math.isfinite(item):
                return item
        elif kind is dict or kind is list:
            items_left -= len(item)
            if items_left >= 0 and depth <= MAX_DEPTH:
                if kind is list:
                    return [copy(one, depth + 1) for one in item]
                if "\x00" not in "".join(item) and all(map(str.isascii, item)):
                    return {key: copy(one, depth + 1) for key, one in item.items()}
        raise _NotPlainError

    try:
        return copy(value, 1)
    except (_NotPlainError, TypeError):  # a key that is no string
        return None


def find_unstorable(value: object, max_items: int) -> tuple[str, str] | None:
    """Look for what JSON or BSON cannot hold.

    Args:
        value: a tree of dicts and lists as a producer built it. ObjectIds and aware datetimes are fine.
        max_items: how many dicts, lists and values it may have. In Python one list can stand in many places, so that
            a small object is an endless text.

    Returns:
        The place as a dotted path and the reason, of the first thing found; None when all of it can be stored.
    """
    todo: list[tuple[_Place, object, int]] = [(None, value, 1)]
    items_left = max_items
    while todo:
        place, item, depth = todo.pop()
        reason = _why_unstorable(item)
        children: list[tuple[object, object]] = []
        if reason is None and isinstance(item, dict | list | tuple):
            items_left -= len(item)
            if depth > MAX_DEPTH:
                reason = f"is nested deeper than {MAX_DEPTH} levels"
            elif items_left < 0:
                return "", f"holds more than {max_items} values"
            elif isinstance(item, dict):
                reason = next(filter(None, map(_why_bad_key, item)), None)
                children = list(item.items())
            else:
                children = list(enumerate(item))
        if reason:
            return _write_place(place), reason
        todo.extend(((place, key), child, depth + 1) for key, child in reversed(children))
    return None


def _write_place(place: _Place) -> str:
    keys: list[str] = []
    while place is not None:
        place, key = place
        keys.append(show(key))
    path = ".".join(reversed(keys))
    return path if len(path) <= _MAX_PLACE else path[:_MAX_PLACE] + "…"


def _why_unstorable(item: object) -> str | None:
    reason = None
    if isinstance(item, str):
        if not item.isascii() and _has_surrogate(item):
            reason = "has half of a surrogate pair, which UTF-8 cannot hold"
    elif item is None or isinstance(item, bool | dict | list | tuple | ObjectId):
        pass
    elif isinstance(item, int):
        # No `in range(…)`: for what is more than an int, such as the Int64 of a document that was read from MongoDB, it
        # counts up from the start.
        if not _INT64_MIN <= item <= _INT64_MAX:
            reason = "is a number beyond 64 bits, which MongoDB cannot hold; send it as a string"
    elif isinstance(item, float):
        if not math.isfinite(item):
            reason = "is not a finite number, or too large for one; send it as a string"
    elif isinstance(item, datetime):
        reason = _why_bad_date(item)
    else:
        reason = f"is a Python {type(item).__name__}, which JSON does not have"
    return reason


def _why_bad_date(item: datetime) -> str | None:
    if item.utcoffset() is None:
        return "is a date without a time zone"
    try:
        item.astimezone(UTC)
    except OverflowError:
        return "is a date that in UTC is not within the years 1 to 9999"
    return None


def _why_bad_key(key: object) -> str | None:
    if not isinstance(key, str):
        return f"has a key that is no string but a Python {type(key).__name__}"
    if "\x00" in key:
        return "has a key with a NUL character, which MongoDB cannot hold"
    if not key.isascii() and _has_surrogate(key):
        return "has a key with half of a surrogate pair, which UTF-8 cannot hold"
    return None


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


class WireModel(BaseModel):
    """Base of the contract's objects: keeps every key, in the order in which it was given.

    Built from JSON, from a MongoDB document or from keywords; immutable, because its wire form is made once.
    """

    model_config = ConfigDict(extra="allow", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True)

    _wire: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep_wire(cls, value: object, handler: Handler[Self], info: ValidationInfo) -> Self:
        if isinstance(value, DBRef):
            # What the BSON decoder makes of an object that happens to have the keys of a reference.
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

    @model_serializer(mode="plain")
    def _serialize(self) -> dict[str, Any]:
        return self.to_wire()

    def to_wire(self) -> dict[str, Any]:
        """Return the object as JSON holds it. The caller must not change it."""
        return self._wire

    def to_json(self) -> str:
        """Return the object as JSON text, keys in the order in which they were given."""
        return to_json(self.to_wire())

    def to_bson(self) -> dict[str, Any]:
        """Return the object as MongoDB holds it: the contract's ids are ObjectIds and its instants are dates."""
        return {key: self._stored(key, value) for key, value in self._wire.items()}

    def _stored(self, key: str, wire_value: Any) -> Any:
        name = _names(type(self)).get(key)
        if name is not None:
            typed = getattr(self, name)
            if isinstance(typed, ObjectId | datetime):
                return typed
            if isinstance(typed, WireModel):
                return typed.to_bson()
        return wire_value


@cache
def _names(model: type[BaseModel]) -> dict[str, str]:
    """Return the attribute of each key that a model names. Other keys may be called anything, such as ``_id``."""
    return {field.alias or name: name for name, field in model.model_fields.items()}


def explain(error: ValidationError) -> str:
    """Put a pydantic error into one line: each field and its reason, never a value, which may be secret."""
    reasons = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        field = ".".join(show(part) for part in item["loc"]) or "it"
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        message = "is missing" if item["type"] == "missing" else message[0].lower() + message[1:]
        reasons.append(f"{field}: {message}")
    return "; ".join(reasons)
