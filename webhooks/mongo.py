"""The connection to MongoDB, and the one place that sorts its errors. Used by the stores."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DuplicateKeyError,
    InvalidURI,
    OperationFailure,
    WriteError,
)
from pymongo.uri_parser import parse_uri

from webhooks.errors import InvalidSettings, StoreUnavailable

Document = dict[str, Any]

_DUPLICATE_KEY = 11000
#: Server errors that concern the one document at hand; all others are the server's state and may pass.
_DOCUMENT_ERRORS = frozenset(
    {
        2,  # BadValue
        15,  # Overflow: nested too deeply
        121,  # DocumentValidationFailure
        10334,  # BSONObjectTooLarge
        17280,  # KeyTooLong
    }
)


def open_database(url: str, timeout_s: float) -> Database[Document]:
    """Make a client for this process; connects on first use, and again by itself.

    Args:
        url: ``mongodb://…`` with the database as its path; ``webhooks`` where it names none.
        timeout_s: what one operation may take: one half for a server that is away, the other for its answer, as a
            paused server keeps connections open and answers nothing.

    Raises:
        InvalidSettings: when the URL cannot be used; the URL is not repeated, as it may hold a password.
    """
    half_ms = int(timeout_s * 500)
    try:
        name = parse_uri(url, validate=True).get("database") or "webhooks"
        client: MongoClient[Document] = MongoClient(
            url,
            appname="webhooks",
            tz_aware=True,
            serverSelectionTimeoutMS=half_ms,
            connectTimeoutMS=half_ms,
            socketTimeoutMS=half_ms,
            # What is acknowledged must survive the loss of one server and a crash right after: a majority has it,
            # in its journal. On a single server this costs the wait for the journal, some milliseconds.
            w="majority",
            journal=True,
            retryWrites=True,
        )
    except (InvalidURI, ConfigurationError, ValueError):
        raise InvalidSettings(
            "WEBHOOKS_MONGODB_URL: is not a MongoDB URL, such as mongodb://127.0.0.1:27017/webhooks"
        ) from None
    return client[name]


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
    except OperationFailure as error:
        if error.code in _DOCUMENT_ERRORS:
            raise
        raise StoreUnavailable(f"MongoDB refused an operation: {_name(error)}") from error


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
    return NotWritten()


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
