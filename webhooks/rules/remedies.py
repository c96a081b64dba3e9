"""Error texts for a broker or a MongoDB that cannot be used: the reason and the remedy, on one line.

A foreign error's text is repeated only if it holds nothing but host, port and the server's own words: never a password.
"""

import ssl
from collections.abc import Iterator
from typing import Any

import amqp
import redis
from kombu.exceptions import KombuError
from pymongo.errors import ConnectionFailure, NetworkTimeout, OperationFailure, ServerSelectionTimeoutError
from redis.exceptions import BusyLoadingError, InvalidResponse, NoPermissionError, OutOfMemoryError, ReadOnlyError

from webhooks.errors import WebhooksError

DRIVER_ERRORS = (KombuError, redis.RedisError, amqp.AMQPError)
BROKER_ERRORS = (*DRIVER_ERRORS, OSError)

_BROKER, _DATABASE = "WEBHOOKS_BROKER_URL", "WEBHOOKS_MONGODB_URL"
_ENCODED = "in which characters such as @ : / # % of a user or password must be percent-encoded (@ is %40)"
#: https://www.mongodb.com/docs/manual/reference/error-codes/
_UNAUTHORIZED, _AUTHENTICATION_FAILED = 13, 18

#: Types of the error or one of its causes → remedy. First match wins.
_BROKER_REMEDIES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    ((redis.AuthenticationError, amqp.AccessRefused), f"check user and password in {_BROKER}, {_ENCODED}"),
    (amqp.NotAllowed, f"check the virtual host in {_BROKER}, and what the user may do there"),
    (
        NoPermissionError,
        f"give the user of {_BROKER} more: +@all -@dangerous, with all keys (~*) and channels (&*), is enough",
    ),
    (OutOfMemoryError, "its memory is full: let workers empty it, or raise its maxmemory"),
    (ReadOnlyError, f"it is a replica: set {_BROKER} to the primary"),
    (BusyLoadingError, "it is reading its data: wait"),
    (InvalidResponse, f"the server is not a Redis: check host and port in {_BROKER}"),
    (ssl.SSLError, f"check the server's certificate, and the TLS options of {_BROKER}"),
    (redis.ResponseError, f"check {_BROKER}, and the server's settings"),
)
_START_BROKER = f"start it, or set {_BROKER} to where it is"
#: redis-py's text for a server with another protocol.
_CLOSED = "Connection closed by server."
_CHECK_SCHEME = (
    f"check host and port in {_BROKER}, whether anything between drops packets, and its scheme: rediss:// and amqps:// "
    "are for a server with TLS, redis:// and amqp:// for one without"
)
_START_DATABASE = f"start it, or set {_DATABASE} to where it is"


def explain_broker(error: BaseException) -> str:
    """Return why the broker cannot be used, and the remedy."""
    chain = list(_causes(error))
    reason = _text_of_broker(error)
    if _BROKER in reason:  # the transport's own text
        return f"{reason}, {_ENCODED}"
    for kinds, remedy in _BROKER_REMEDIES:
        if any(isinstance(one, kinds) for one in chain):
            return f"{reason}; {remedy}"
    is_silent = any(isinstance(one, TimeoutError | redis.TimeoutError) for one in chain) or reason == _CLOSED
    return f"{reason}; {_CHECK_SCHEME if is_silent else _START_BROKER}"


def explain_database(error: BaseException) -> str:
    """Return why MongoDB cannot be used, and the remedy."""
    for one in _causes(error):
        if isinstance(one, OperationFailure):
            return f"{_text_of_refusal(one)}; {_remedy_of_refusal(one)}"
        if isinstance(one, ServerSelectionTimeoutError):
            # Without the driver's own state.
            text = str(one).partition(" (configured timeouts")[0].partition(", Timeout:")[0]
            return f"MongoDB is not reachable: {text}; {_remedy_of_selection(text)}"
        if isinstance(one, NetworkTimeout):
            return f"MongoDB does not answer in time; check whether it is busy or paused, and {_DATABASE}"
        if isinstance(one, ConnectionFailure):
            return f"MongoDB is not reachable ({type(one).__name__}); {_START_DATABASE}"
    text = str(error) if isinstance(error, WebhooksError) else type(error).__name__
    return f"{text}; {_START_DATABASE}"


def is_refusal(error: BaseException) -> bool:
    """Return whether a server refused user or password, so that waiting does not help."""
    return any(
        isinstance(one, redis.AuthenticationError | amqp.AccessRefused)
        or (isinstance(one, OperationFailure) and one.code in (_UNAUTHORIZED, _AUTHENTICATION_FAILED))
        for one in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _text_of_broker(error: BaseException) -> str:
    # A pipeline's error quotes the command, which may be a message.
    text = str(error).rpartition(" caused error: ")[2].strip()
    return text if isinstance(error, BROKER_ERRORS) and text else type(error).__name__


def _text_of_refusal(error: OperationFailure) -> str:
    # Its own text may quote payload.
    details: Any = error.details or {}
    return f"MongoDB refused an operation: {details.get('codeName') or f'error {error.code}'}"


def _remedy_of_refusal(error: OperationFailure) -> str:
    if error.code == _AUTHENTICATION_FAILED:
        return f"check user and password in {_DATABASE}, {_ENCODED}, and authSource, the database that holds the user"
    if error.code == _UNAUTHORIZED:
        return f"put user and password into {_DATABASE}, and give that user the role readWrite on its database"
    return "it may pass; the server's log says more"


def _remedy_of_selection(text: str) -> str:
    if "SSL" in text or "certificate" in text:
        return f"check the server's certificate, and the TLS options of {_DATABASE}"
    if "replica set" in text.lower() or "primary" in text:
        return f"check replicaSet in {_DATABASE}, and that the set has a primary"
    if "refused" in text or "[Errno -" in text:
        return _START_DATABASE
    return f"check host and port in {_DATABASE}, and whether the server wants TLS (tls=true)"
