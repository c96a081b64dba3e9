"""Errors that this package raises on purpose, and the reasons why an attempt has no response."""

import traceback
from enum import StrEnum

#: The remedy for a setting whose URL cannot be parsed.
ENCODE_HINT = "percent-encode special characters of user and password: @ %40, : %3A, / %2F, ? %3F, # %23, ; %3B, % %25"


class WebhooksError(Exception):
    """Base of all errors raised on purpose."""


class InvalidInput(WebhooksError, ValueError):
    """Input that breaks the contract; the text names each field, the reason and the remedy."""


class InvalidEvent(InvalidInput):
    """An event that breaks the contract. Raised in the producer; fails the task of a producer without this package."""


class InvalidWebhook(InvalidInput):
    """A webhook, from the command line or from MongoDB, that breaks the contract."""


class InvalidSettings(InvalidInput):
    """A ``WEBHOOKS_…`` environment variable with an invalid value."""


class ErrorKind(StrEnum):
    """Why an attempt has no response: the log's ``attempt.error_kind``.

    The contract logs these with status 409; the kind tells them from a receiver's own 409.
    """

    #: The host name has no address (``getaddrinfo ENOTFOUND``).
    LOOKUP = "lookup"
    #: The name server failed (``EAI_AGAIN`` and others). Not the receiver's fault.
    RESOLVER = "resolver"
    #: No TCP connection within the connect deadline.
    CONNECT_TIMEOUT = "connect_timeout"
    #: The address refused the TCP connection.
    CONNECT_REFUSED = "connect_refused"
    #: The TCP connection failed for another reason, such as no route to the host.
    CONNECT_FAILED = "connect_failed"
    #: The TLS handshake failed, or the certificate is not valid.
    TLS = "tls"
    #: The connection was reset during the request or the response.
    RESET = "reset"
    #: The receiver closed the connection before it responded.
    HANG_UP = "hang_up"
    #: The connection closed in the middle of a response.
    ABORTED = "aborted"
    #: The response is not HTTP.
    BAD_RESPONSE = "bad_response"
    #: The total deadline passed.
    TIMEOUT = "timeout"
    #: The address policy or the port policy forbids the request.
    NOT_ALLOWED = "not_allowed"
    #: The operator's proxy failed, or could not reach the address. Not the receiver's fault.
    PROXY = "proxy"
    #: The webhook's URL is not valid.
    BAD_URL = "bad_url"
    #: A secret of the webhook cannot be opened, or all have expired; no request was made.
    SECRET_UNREADABLE = "secret_unreadable"  # noqa: S105 - a word, no password
    #: A defect of this package; the worker's log has the traceback.
    INTERNAL = "internal"
    #: The worker died before it recorded the attempt. The receiver may have got the request; it is repeated.
    INTERRUPTED = "interrupted"
    #: An operator skipped the delivery; no request was made.
    SKIPPED = "skipped"
    #: The webhook was deactivated after the event was accepted; no request was made.
    WEBHOOK_INACTIVE = "webhook_inactive"
    #: The webhook's document is gone, or breaks the contract; no request was made.
    WEBHOOK_UNUSABLE = "webhook_unusable"


def trace(error: BaseException) -> str:
    """Return the types and code lines of an error and its causes, without their texts, which may hold payload."""
    parts = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        parts.append(type(cause).__name__ + "\n" + "".join(traceback.format_tb(cause.__traceback__)).rstrip())
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\ncaused by ".join(parts)


class NoResponse(WebhooksError):
    """An attempt ended without a whole response.

    Attributes:
        kind: the reason.
        text: the log's ``response``, in the contract's words.
    """

    def __init__(self, kind: ErrorKind, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class AttemptFailed(WebhooksError):
    """An attempt failed; Celery retries it and Flower shows the text, which holds no payload."""


class TaskDefect(WebhooksError):
    """A task met a defect of this package; the text names only the error's type, as its message may hold payload."""


class WorkersLost(TaskDefect):
    """A delivery was interrupted so often that it seems to kill the workers that attempt it."""


class Requeue(WebhooksError):
    """A message goes back to its queue: a server is away, or its turn has not come."""


class TooLate(WebhooksError):
    """A request was not begun by the time that its caller set, and is not sent."""


class SecretUnreadable(WebhooksError):
    """A webhook's secret cannot be sealed or opened with the configured keys; the text says why, without the secret."""


class CannotResend(WebhooksError):
    """A dead letter cannot be published again; the text says why."""


class CannotAct(WebhooksError):
    """An operator's action cannot be done now; the text says why, in a sentence."""


class BrokerTooOld(WebhooksError):
    """The Redis broker is older than the transport needs; the text names the required version."""


class StoreUnavailable(WebhooksError):
    """MongoDB is unavailable: hold the work and try again, never drop it."""


class NotInstalled(WebhooksError, ImportError):
    """Required packages are missing or have the wrong version; the text says how to install them."""


class ServerMissing(WebhooksError):
    """An embedded server is not installed, or cannot run here; the text says how to install it."""


class CannotStart(WebhooksError):
    """A program did not start; the text names it and the reason in one line."""
