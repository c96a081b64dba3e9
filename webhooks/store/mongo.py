"""The connection to MongoDB, and the classification of its errors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from bson.errors import BSONError
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DuplicateKeyError,
    InvalidName,
    InvalidURI,
    OperationFailure,
    ServerSelectionTimeoutError,
    WriteError,
)
from pymongo.uri_parser import split_options

from webhooks.errors import ENCODE_HINT, InvalidSettings, StoreUnavailable
from webhooks.rules.mongodb_url import list_options, read_mongodb_url

Document = dict[str, Any]
T = TypeVar("T")

_BAD_URL = f"WEBHOOKS_MONGODB_URL: is not a MongoDB URL, or its options contradict each other; {ENCODE_HINT}"
#: Used when the URL names no database.
_DEFAULT_DATABASE = "webhooks"

#: Sorts after all that ids consist of: ends a search for those that begin with a text.
LAST_CHARACTER = "\U0010ffff"

_DUPLICATE_KEY = 11000
_BAD_VALUE = 2
#: The driver's errors for a document that it cannot encode. Their texts may hold the document's content.
_ENCODING_ERRORS = (BSONError, OverflowError, UnicodeError, RecursionError)
#: Server errors about a document; all others are about the server's state and may pass.
_DOCUMENT_ERRORS = frozenset(
    {
        _BAD_VALUE,
        15,  # Overflow: nested too deeply
        121,  # DocumentValidationFailure
        10334,  # BSONObjectTooLarge
        17280,  # KeyTooLong
    }
)

_BAD_LOGIN = "; correct user or password in WEBHOOKS_MONGODB_URL"
#: By the code of the server's error.
_REMEDIES = {
    13: "; WEBHOOKS_MONGODB_URL needs a user, with readWrite on its database",  # Unauthorized
    18: _BAD_LOGIN,  # AuthenticationFailed
    8000: _BAD_LOGIN,  # AtlasError, mostly "bad auth"
}


def open_database(url: str, timeout_s: float) -> Database[Document]:
    """Make a client for this process; it connects on first use and reconnects by itself.

    Args:
        url: ``mongodb://…`` with the database as its path.
        timeout_s: limit of one operation: half for finding a server, half for its answer.

    Raises:
        InvalidSettings: the URL is invalid; the text does not repeat it, as it may hold a password.
    """
    half_ms = max(1, int(timeout_s * 500))  # 0 would be no limit
    try:
        _check_options(read_mongodb_url(url))
    except ValueError as error:
        raise InvalidSettings(f"WEBHOOKS_MONGODB_URL: {error}") from None
    has_name = any(option.lower() == "appname" for option, _ in list_options(url))
    name: dict[str, Any] = {} if has_name else {"appname": "webhooks"}
    try:
        client: MongoClient[Document] = MongoClient(
            url,
            # With mongodb+srv://, an unreachable name server is an outage (`store_errors`), not a bad setting.
            connect=False,
            tz_aware=True,
            # Other services write here too. A date beyond Python's range or invalid UTF-8 in one document must not
            # make the others unreadable.
            datetime_conversion="DATETIME_AUTO",
            unicode_decode_error_handler="replace",
            serverSelectionTimeoutMS=half_ms,
            connectTimeoutMS=half_ms,
            socketTimeoutMS=half_ms,
            # Acknowledged writes must survive the loss of a server and a crash. On a single server this costs some
            # milliseconds for the journal.
            w="majority",
            journal=True,
            retryWrites=True,
            # Decisions depend on reads, and secondaries lag behind.
            readPreference="primary",
            readPreferenceTags="",
            maxStalenessSeconds=-1,
            **name,
        )
    except (InvalidURI, ConfigurationError, ValueError):
        raise InvalidSettings(_BAD_URL) from None
    try:
        return client.get_default_database(_DEFAULT_DATABASE)
    except InvalidName:
        client.close()
        raise InvalidSettings(_BAD_URL) from None


def _check_options(url: str) -> None:
    """Check each option with the driver, so that the error can name it.

    Raises:
        ValueError: the driver rejects an option.
    """
    for name, value in list_options(url):
        try:
            split_options(f"{name}={value}")
        except OSError:
            reason = "names a file that cannot be read"
        except (InvalidURI, ConfigurationError, ValueError, TypeError):
            reason = "is unknown to MongoDB's driver, or has an invalid value: correct it or leave it out"
        else:
            continue
        raise ValueError(f"the option {name} {reason}")


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn errors of the server's state into StoreUnavailable; errors about a document pass unchanged.

    Raises:
        StoreUnavailable: the server is away, not primary, out of resources, or refuses the login.
    """
    try:
        yield
    except DuplicateKeyError:
        raise
    except ConnectionFailure as error:
        raise StoreUnavailable(f"MongoDB is not reachable ({type(error).__name__})") from error
    except ConfigurationError as error:
        # The driver resolves mongodb+srv:// when it connects.
        if error.__cause__ is None:
            raise StoreUnavailable("the driver does not support this MongoDB") from error
        reason = type(error.__cause__).__name__
        raise StoreUnavailable(f"the name server does not say where MongoDB is ({reason})") from error
    except OperationFailure as error:
        if error.code in _DOCUMENT_ERRORS:
            raise
        remedy = _REMEDIES.get(error.code or 0, "")
        raise StoreUnavailable(f"MongoDB refused an operation: {_name(error)}{remedy}") from error


def repeat_once(write: Callable[[], T]) -> T:
    """Carry out a write, and again if its reply is lost: the driver does not repeat writes of many documents."""
    try:
        return write()
    except ServerSelectionTimeoutError:
        raise
    except AutoReconnect:
        return write()


@dataclass(frozen=True, slots=True)
class Query:
    """A query on one collection."""

    collection: Collection[Document]
    filter: Document
    #: As for ``find``; None for whole documents.
    fields: Document | None = None


def find_both(first: Query, second: Query) -> tuple[list[Document], list[Document]]:
    """Read two collections of one database in one round trip; needs MongoDB 4.4.

    Raises:
        StoreUnavailable: the server is away.
    """

    def stages(query: Query, name: str) -> list[Document]:
        fields = [] if query.fields is None else [{"$project": query.fields}]
        return [{"$match": query.filter}, *fields, {"$replaceWith": {name: "$$ROOT"}}]

    union = {"$unionWith": {"coll": second.collection.name, "pipeline": stages(second, "second")}}
    with store_errors():
        found = list(first.collection.aggregate([*stages(first, "first"), union]))
    return [one["first"] for one in found if "first" in one], [one["second"] for one in found if "second" in one]


@dataclass(frozen=True, slots=True)
class NotWritten:
    """Items of a bulk write that were not written, by their index."""

    #: Their ``_id`` exists already.
    known: tuple[int, ...] = ()
    #: They cannot be stored, and why.
    faults: Mapping[int, WriteError] = field(default_factory=dict)


def insert_new(collection: Collection[Document], documents: Sequence[Document]) -> NotWritten:
    """Insert documents whose `_id` does not exist yet; return those that were not inserted.

    Raises:
        StoreUnavailable: the server is away; some may have been inserted.
    """
    if not documents:
        return NotWritten()
    with store_errors():
        try:
            collection.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            return document_errors(error)
        except OperationFailure as error:
            # The server refuses the whole batch for one document that is too large.
            if error.code not in _DOCUMENT_ERRORS:
                raise
        except _ENCODING_ERRORS:
            pass
        else:
            return NotWritten()
        # The error does not name the document.
        return _insert_each(collection, documents)


def _insert_each(collection: Collection[Document], documents: Sequence[Document]) -> NotWritten:
    faults: dict[int, WriteError] = {}
    known = []
    for place, document in enumerate(documents):
        try:
            collection.insert_one(document)
        except DuplicateKeyError:
            known.append(place)
        except OperationFailure as error:
            if error.code not in _DOCUMENT_ERRORS:
                raise
            faults[place] = WriteError(f"error {error.code}", error.code)
        except _ENCODING_ERRORS as error:
            faults[place] = WriteError(f"cannot be encoded ({type(error).__name__})", _BAD_VALUE)
    return NotWritten(tuple(known), faults)


def document_errors(error: BulkWriteError) -> NotWritten:
    """Return the errors of single documents in a bulk write.

    Raises:
        StoreUnavailable: there are errors of the server itself.
    """
    faults: dict[int, WriteError] = {}
    known = []
    for fault in error.details.get("writeErrors", []):
        if fault["code"] == _DUPLICATE_KEY:
            known.append(fault["index"])
            continue
        if fault["code"] not in _DOCUMENT_ERRORS:
            raise StoreUnavailable(f"MongoDB refused a write: error {fault['code']}") from error
        faults[fault["index"]] = WriteError(f"error {fault['code']}", fault["code"])
    if error.details.get("writeConcernErrors"):
        raise StoreUnavailable("MongoDB could not confirm a write") from error
    return NotWritten(tuple(known), faults)


def server_version(database: Database[Document]) -> str:
    """Return the server's version after a test read.

    Raises:
        StoreUnavailable: the server is away or refuses the read.
    """
    with store_errors():
        database["webhooks"].find_one({}, {"_id": 1})
        return str(database.client.server_info()["version"])


def instant(value: object) -> datetime | None:
    """Return a stored instant; None for any other value."""
    return value if isinstance(value, datetime) else None


def _name(error: OperationFailure) -> str:
    details = error.details or {}
    return str(details.get("codeName") or f"error {error.code}")
