"""The connection to MongoDB, and the one place that sorts its errors. Used by the stores."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bson.errors import BSONError
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DuplicateKeyError,
    InvalidName,
    InvalidURI,
    OperationFailure,
    WriteError,
)
from pymongo.uri_parser import split_options

from webhooks.errors import ENCODE_HINT, InvalidSettings, StoreUnavailable
from webhooks.rules.mongodb_url import list_options, read_mongodb_url

Document = dict[str, Any]

_BAD_URL = f"WEBHOOKS_MONGODB_URL: is not a MongoDB URL, or its options contradict each other; {ENCODE_HINT}"
#: Where the URL names none.
_DEFAULT_DATABASE = "webhooks"

_DUPLICATE_KEY = 11000
_BAD_VALUE = 2
#: What the driver raises for a document that it cannot encode. The words of these may hold what is in it.
_ENCODING_ERRORS = (BSONError, OverflowError, UnicodeError, RecursionError)
#: Server errors that concern the one document at hand; all others are the server's state and may pass.
_DOCUMENT_ERRORS = frozenset(
    {
        _BAD_VALUE,
        15,  # Overflow: nested too deeply
        121,  # DocumentValidationFailure
        10334,  # BSONObjectTooLarge
        17280,  # KeyTooLong
    }
)

_NOT_LET_IN = "; correct user or password in WEBHOOKS_MONGODB_URL"
#: By the code of the server's error.
_REMEDIES = {
    13: "; WEBHOOKS_MONGODB_URL needs a user, with readWrite on its database",  # Unauthorized
    18: _NOT_LET_IN,  # AuthenticationFailed
    8000: _NOT_LET_IN,  # AtlasError, which is "bad auth" before all else
}


def open_database(url: str, timeout_s: float) -> Database[Document]:
    """Make a client for this process; connects on first use, and again by itself.

    Args:
        url: ``mongodb://…`` with the database as its path; ``webhooks`` where it names none.
        timeout_s: what one operation may take: one half for a server that is away, the other for its answer, as a
            paused server keeps connections open and answers nothing.

    Raises:
        InvalidSettings: when the URL cannot be used; the URL is not repeated, as it may hold a password.
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
            # A name server that is away must not keep a URL with mongodb+srv:// from being opened: see store_errors.
            connect=False,
            tz_aware=True,
            # Others write here, too. A date beyond Python's calendar, or a text that is no UTF-8, in one document must
            # not make all those unreadable that are read with it.
            datetime_conversion="DATETIME_AUTO",
            unicode_decode_error_handler="replace",
            serverSelectionTimeoutMS=half_ms,
            connectTimeoutMS=half_ms,
            socketTimeoutMS=half_ms,
            # What is acknowledged must survive the loss of one server and a crash right after: a majority has it,
            # in its journal. On a single server this costs the wait for the journal, some milliseconds.
            w="majority",
            journal=True,
            retryWrites=True,
            # Decisions follow from what is read, whatever the URL prefers: a secondary lags behind.
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
    """Have the driver check each option by itself, so that the one it does not take can be named.

    Raises:
        ValueError: it does not take one.
    """
    for name, value in list_options(url):
        try:
            split_options(f"{name}={value}")
        except OSError:
            reason = "names a file that cannot be read"
        except (InvalidURI, ConfigurationError, ValueError, TypeError):
            reason = "is unknown to MongoDB's driver, or has a value that it does not take: correct it or leave it out"
        else:
            continue
        raise ValueError(f"the option {name} {reason}")


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn "not now" errors into StoreUnavailable; errors about a document pass as they are.

    Raises:
        StoreUnavailable: the server is away, not primary, out of resources, or does not let us in.
    """
    try:
        yield
    except DuplicateKeyError:
        raise
    except ConnectionFailure as error:
        raise StoreUnavailable(f"MongoDB is not reachable ({type(error).__name__})") from error
    except ConfigurationError as error:
        # What the driver finds out when it connects: mongodb+srv:// asks the name server then.
        if error.__cause__ is None:
            raise StoreUnavailable("MongoDB is one that the driver cannot use") from error
        reason = type(error.__cause__).__name__
        raise StoreUnavailable(f"the name server does not say where MongoDB is ({reason})") from error
    except OperationFailure as error:
        if error.code in _DOCUMENT_ERRORS:
            raise
        remedy = _REMEDIES.get(error.code or 0, "")
        raise StoreUnavailable(f"MongoDB refused an operation: {_name(error)}{remedy}") from error


@dataclass(frozen=True, slots=True)
class Query:
    """What to read of one collection."""

    collection: Collection[Document]
    filter: Document
    #: As for ``find``; None for whole documents.
    fields: Document | None = None


def find_both(first: Query, second: Query) -> tuple[list[Document], list[Document]]:
    """Read two collections of one database in one round trip; needs MongoDB 4.4.

    Raises:
        StoreUnavailable: the server is away.
    """

    def stages(question: Query, name: str) -> list[Document]:
        fields = [] if question.fields is None else [{"$project": question.fields}]
        return [{"$match": question.filter}, *fields, {"$replaceWith": {name: "$$ROOT"}}]

    union = {"$unionWith": {"coll": second.collection.name, "pipeline": stages(second, "second")}}
    with store_errors():
        found = list(first.collection.aggregate([*stages(first, "first"), union]))
    return [one["first"] for one in found if "first" in one], [one["second"] for one in found if "second" in one]


@dataclass(frozen=True, slots=True)
class NotWritten:
    """The items of one write that changed nothing, by their places."""

    #: Their ``_id`` was there already.
    known: tuple[int, ...] = ()
    #: They cannot be stored at all, and why.
    faults: Mapping[int, WriteError] = field(default_factory=dict)


def insert_new(collection: Collection[Document], documents: Sequence[Document]) -> NotWritten:
    """Insert documents in one write, leaving alone those whose `_id` is there already.

    Returns:
        Which ones were not inserted.

    Raises:
        StoreUnavailable: the server cannot take them now; some may have been inserted.
    """
    if not documents:
        return NotWritten()
    with store_errors():
        try:
            collection.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            return document_errors(error)
        except OperationFailure as error:
            # The server refuses all of them for one that is too large.
            if error.code not in _DOCUMENT_ERRORS:
                raise
        except _ENCODING_ERRORS:
            pass
        else:
            return NotWritten()
        # Nobody says which document it is, nor what became of the others.
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
    """Sort what a bulk write met: the errors of single documents.

    Raises:
        StoreUnavailable: the server itself had a fault.
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
    """Ask for the server's version, and make sure that it lets us read.

    Raises:
        StoreUnavailable: the server is away or does not let us in.
    """
    with store_errors():
        database["webhooks"].find_one({}, {"_id": 1})
        return str(database.client.server_info()["version"])


def _name(error: OperationFailure) -> str:
    details = error.details or {}
    return str(details.get("codeName") or f"error {error.code}")
