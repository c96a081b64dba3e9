"""Values that hate us, for every test of this folder, and what may never come out of the other end."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import bson
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.dbref import DBRef
from hypothesis import strategies as st

from tests.lab.samples_data import read_sample

#: Stands in every text that is a value, so that a test can see whether an error or a log repeats one.
MARK = "v4lu3"

#: What acts on a terminal: all controls but line feed, and changes of direction.
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")

ANY_CHARACTER = st.characters(exclude_categories=[])
ANY_TEXT = st.text(ANY_CHARACTER, max_size=8) | st.sampled_from(
    ["\x00", "\x1b[2J", "\x1b]0;x\x07", "\u202e", "\ud800", "\r\n", "\x9b31m", "𝒳", "a" * 300]
)
MARKED_TEXT = ANY_TEXT.map(lambda text: MARK + text)
#: Names that mean something to MongoDB, kombu, pydantic or us.
KEYS = ANY_TEXT | st.sampled_from(
    "|$set|$ref|$id|$db|a.b|__type__|__value__|__proto__|__class__|_wire|_id|id|model_config|model_fields|to_json"
    "|company|data|diff|self|cls|previous|changedTo".split("|")
)
NUMBERS = (
    st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([2**63, 2**63 - 1, -(2**63), -(2**63) - 1, 10**400, Int64(5), -0.0, 5e-324, float("nan")])
)
SCALARS = st.none() | st.booleans() | NUMBERS | MARKED_TEXT


def trees(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any] = KEYS) -> st.SearchStrategy[Any]:
    """Lists and dicts of leaves."""
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=12,
    )


JSON_TREES = trees(SCALARS)
#: What Python's callers may hand in besides: nothing of it is JSON.
PYTHON_TREES = trees(
    SCALARS
    | st.binary(max_size=4).map(lambda raw: MARK.encode() + raw)
    | st.sampled_from([ObjectId("6" * 24), datetime(2026, 1, 2), object, {1, 2}, 1j, DBRef("a", 1), Decimal128("1")])
    | st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=14)), timezone(-timedelta(hours=12))]))
    | st.tuples(st.none(), st.none()),
    KEYS | st.none() | st.integers() | st.binary(max_size=2),
)
#: What a document of MongoDB may hold, whoever wrote it. No lone surrogates: the driver refuses to write them.
BSON_TEXT = st.text(max_size=6) | st.sampled_from(["\x00", "\x1b[2J\x1b]0;x\x07", "\u202e", "\x9b31m", "\r\n", "-1"])
BSON_KEYS = BSON_TEXT.map(lambda text: text.replace("\x00", "")) | st.sampled_from(["$set", "$ref", "$id", "a.b", ""])
_BSON_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | BSON_TEXT
    | st.sampled_from([Binary(b"\x1b\xff", 4), b"\xff\x00", Regex("(", 64), MinKey(), MaxKey(), Code("x", {"a": 1})])
    | st.sampled_from([Timestamp(1, 2), Decimal128("NaN"), ObjectId("6" * 24), "6" * 24, DBRef("a", 1, "b")])
    | st.sampled_from([bson.DatetimeMS(-(2**60)), bson.DatetimeMS(10**15)])
    | st.sampled_from([datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)])
)
BSON_VALUES = trees(_BSON_LEAVES, BSON_KEYS)


def make_event(**changes: Any) -> dict[str, Any]:
    """Return the sample of an edit, with changes."""
    return {**read_sample("event-note-edit"), **changes}


@st.composite
def ruined(draw: st.DrawFn, sample: dict[str, Any], values: st.SearchStrategy[Any]) -> dict[str, Any]:
    """A document with up to three fields gone or replaced, and perhaps some that nobody knows."""
    document = dict(sample)
    for field in draw(st.lists(st.sampled_from(sorted(sample)), max_size=3, unique=True)):
        if draw(st.booleans()):
            document[field] = draw(values)
        else:
            del document[field]
    return document


def nested(levels: int, inner: Any = None, key: str | None = "a") -> Any:
    """Return something deep: of dicts with a key, or of lists where that is None."""
    for _ in range(levels):
        inner = [inner] if key is None else {key: inner}
    return inner


def as_json(value: object) -> str:
    """Write JSON as `Event.to_json` must: this is what "byte for byte" is held against."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail when something that should cost next to nothing takes more of this thread's time.

    Not of the clock on the wall: other things run on this machine, too. pytest's own timeout ends what hangs.
    """
    begun = time.thread_time()
    yield
    took = time.thread_time() - begun
    assert took < seconds, f"took {took:.1f} s"
