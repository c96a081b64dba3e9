"""Every exception that this package raises on purpose, and the kinds of "no response came".

Owns the words that other modules share about failure, and which of them may be logged. Never imports from the rest
of the package.

    WebhooksError
    ├── InvalidInput         somebody gave us something that the contract does not allow
    │   ├── InvalidEvent
    │   ├── InvalidWebhook
    │   └── InvalidSettings
    ├── NoResponse           an attempt ended without a whole response
    ├── AttemptFailed        an attempt counts as failed: what Celery shows and retries
    ├── TaskDefect           our own code failed in a task: what Celery shows and retries
    │   └── WorkersLost      workers died of it, again and again
    ├── TooLate              a request was not begun in time, so it is not sent
    ├── SecretUnreadable     a webhook's secret cannot be sealed or opened with the key that we have
    ├── CannotResend         a dead letter whose message cannot be published again
    ├── BrokerTooOld         the broker is a Redis that lacks what the transport needs
    ├── StoreUnavailable     MongoDB cannot be reached or cannot serve us now: hold, never drop
    ├── NotInstalled         packages that this needs are missing here, or of versions that it cannot use
    ├── ServerMissing        a server of the embedded default is not installed, or cannot run here
    └── CannotStart          a program that we run, or wait for, does not come up
"""

import traceback
from enum import StrEnum

#: What to do when a URL cannot be taken apart, for all settings that are one.
ENCODE_HINT = "percent-encode special characters of user and password: @ %40, : %3A, / %2F, ? %3F, # %23, ; %3B, % %25"


class WebhooksError(Exception):
    """Base of all errors raised on purpose."""


class InvalidInput(WebhooksError, ValueError):
    """Input that the contract does not allow; the text names each field, the reason and the remedy."""


class InvalidEvent(InvalidInput):
    """An event that cannot be accepted. Raised in a producer that has this package, else it fails the task."""


class InvalidWebhook(InvalidInput):
    """A webhook, typed in or stored by someone else, that cannot be used."""


class InvalidSettings(InvalidInput):
    """A ``WEBHOOKS_…`` environment variable that cannot be used."""


class ErrorKind(StrEnum):
    """Why an attempt has no response of its own to log: the log's ``attempt.error_kind``.

    Logged with status 409 (contract), so this is what tells them from a receiver's own 409.
    """

    #: The host name has no address (``getaddrinfo ENOTFOUND``).
    LOOKUP = "lookup"
    #: The host name could not be looked up now (``EAI_AGAIN`` and others). The name server's fault, or ours: nothing
    #: that the receiver is to blame for.
    RESOLVER = "resolver"
    #: No TCP connection within the connect deadline.
    CONNECT_TIMEOUT = "connect_timeout"
    #: The address refused the TCP connection.
    CONNECT_REFUSED = "connect_refused"
    #: The TCP connection failed in another way, such as no route to the host.
    CONNECT_FAILED = "connect_failed"
    #: The TLS handshake failed, or the certificate was not accepted.
    TLS = "tls"
    #: The connection was reset while we wrote or read.
    RESET = "reset"
    #: The receiver closed the connection before a response.
    HANG_UP = "hang_up"
    #: A response began and broke off before its end.
    ABORTED = "aborted"
    #: What came back is not HTTP.
    BAD_RESPONSE = "bad_response"
    #: The total deadline passed.
    TIMEOUT = "timeout"
    #: The webhook's host is, or resolves to, an address that requests may not go to, or its port is such a one.
    NOT_ALLOWED = "not_allowed"
    #: The operator's proxy failed, or could not reach the address. Nothing that the receiver is to blame for.
    PROXY = "proxy"
    #: The webhook's URL cannot be requested at all.
    BAD_URL = "bad_url"
    #: A secret of the webhook could not be opened, or all have expired, so no request was made.
    SECRET_UNREADABLE = "secret_unreadable"  # noqa: S105 - a word, no password
    #: A fault of our own, such as a defect; the worker's log has the traceback.
    INTERNAL = "internal"
    #: The worker died before the end of the attempt was on record. The receiver may have got it; it is made again.
    INTERRUPTED = "interrupted"
    #: An operator gave the delivery up; no request was made.
    SKIPPED = "skipped"
    #: The webhook was deactivated after the event was accepted; no request was made.
    WEBHOOK_INACTIVE = "webhook_inactive"
    #: The webhook's document is gone, or breaks the contract; no request was made.
    WEBHOOK_UNUSABLE = "webhook_unusable"


def trace(error: BaseException) -> str:
    """Say where an error came from, for a log: its type and lines of code, and the same of what led to it.

    Never its words, nor a value: those of a foreign error may hold what was being worked on, which is payload.
    """
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
        kind: why.
        text: what the log's ``response`` says, in the contract's words.
    """

    def __init__(self, kind: ErrorKind, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class AttemptFailed(WebhooksError):
    """One attempt of a delivery failed; its text is the line that Flower shows. Holds no payload."""


class TaskDefect(WebhooksError):
    """Our own code failed in a task; its text names the error's type alone, as the error's words may hold payload."""


class WorkersLost(TaskDefect):
    """Attempts of one delivery were interrupted so often that the delivery itself must be what kills workers."""


class TooLate(WebhooksError):
    """A request was not begun by the time that its caller set, and is not sent."""


class SecretUnreadable(WebhooksError):
    """A webhook's secret cannot be sealed or opened with the key that we have; the text says why, without it."""


class CannotResend(WebhooksError):
    """A dead letter whose message cannot be published again; the text says why."""


class BrokerTooOld(WebhooksError):
    """The broker is a Redis that lacks what the transport needs; the text names the version that has it."""


class StoreUnavailable(WebhooksError):
    """MongoDB cannot be reached or cannot serve us now. Whoever catches it holds the work and tries again."""


class NotInstalled(WebhooksError, ImportError):
    """Packages that this needs are missing here, or of versions that it cannot use; the text says how to get them."""


class ServerMissing(WebhooksError):
    """A server of the embedded default is not installed, or cannot run here; the text says how to get it."""


class CannotStart(WebhooksError):
    """A program that we run, or wait for, does not come up; the text is one line that says which, and why."""
