"""One attempt's deadline and timings, and the error texts of the contract."""

import errno
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple

from webhooks.errors import ErrorKind, NoResponse
from webhooks.models.url import RequestUrl

#: Python's text of an OpenSSL error: library and reason in brackets, the words, a line of C.
_OPENSSL_WORDS = re.compile(r"(?:\[[^\]]*\] )?(.+?)(?: \(_ssl\.c:[0-9]+\))?")


class Timings(NamedTuple):
    """Duration of each phase, also of the one that failed. None: the phase did not take place."""

    lookup_ms: float | None
    #: TCP over all tried addresses; with a proxy also its look-up and the tunnel.
    connect_ms: float | None
    tls_ms: float | None
    #: Until the request is written.
    send_ms: float | None
    #: Until the response's head is read.
    wait_ms: float | None
    read_ms: float | None
    total_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one request."""

    #: None: no response came.
    status: int | None
    #: The readable body, or the contract's error text if no response came.
    text: str
    #: None: a response came.
    error_kind: ErrorKind | None
    #: Whether the body was longer than the cap.
    cut: bool
    #: ``ip:port`` or ``[ipv6]:port``; None: no connection.
    peer: str | None
    timings: Timings
    #: The wait that the receiver asks for, not bounded; None: none.
    retry_after_s: float | None = None
    #: An unexpected error of our own, for the log; `error_kind` is then INTERNAL.
    defect: Exception | None = None


class Phase(IntEnum):
    """The timed phases, in order: each is its duration's place in `Timings`."""

    LOOKUP = 0
    CONNECT = 1
    TLS = 2
    SEND = 3
    WAIT = 4
    READ = 5


def _no_durations() -> list[float | None]:
    return [None] * 6


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt, from its request to its answer."""

    target: RequestUrl
    connect_timeout_s: float
    total_timeout_s: float
    started: float = field(default_factory=time.monotonic)
    #: ``ip:port``; None before the connection or tunnel.
    peer: str | None = None
    #: Of the response, over the current connection.
    received_bytes: int = 0
    #: Seconds of each phase.
    _durations: list[float | None] = field(default_factory=_no_durations)

    @property
    def deadline(self) -> float:
        """The attempt's end on the monotonic clock."""
        return self.started + self.total_timeout_s

    def remaining_s(self) -> float:
        """Return the time left, more than 0; raise NoResponse (TIMEOUT) if there is none."""
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise self.timed_out()
        return remaining

    def timed_out(self) -> NoResponse:
        """Return the error for a passed deadline."""
        return NoResponse(ErrorKind.TIMEOUT, f"timeout of {round(self.total_timeout_s * 1000)}ms exceeded")

    @contextmanager
    def timing(self, phase: Phase) -> Iterator[None]:
        """Measure a phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.note(phase, time.monotonic() - started)

    def note(self, phase: Phase, seconds: float) -> None:
        """Set a phase's duration."""
        self._durations[phase] = seconds

    def timings(self) -> Timings:
        """Return the measurements so far."""
        took = [None if seconds is None else round(seconds * 1000, 3) for seconds in self._durations]
        return Timings(*took, total_ms=round((time.monotonic() - self.started) * 1000, 3))

    def start_over(self) -> None:
        """Forget a try on a stale connection. Its time still counts in the deadline and the total."""
        self.received_bytes = 0
        self.peer = None
        self._durations = _no_durations()

    def io_failed(self, verb: Literal["read", "write"], error: OSError) -> NoResponse:
        """Map an error of reading or writing by its type."""
        if isinstance(error, TimeoutError) and error.errno is None:
            return self.timed_out()
        if verb == "read" and self.received_bytes:
            return aborted()
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return hang_up() if verb == "read" else NoResponse(ErrorKind.RESET, "write EPIPE")
        if isinstance(error, ssl.SSLError):
            return tls_failed(error)
        # Python's ssl reports ENOTCONN for a connection reset before the handshake.
        name = "ECONNRESET" if error.errno == errno.ENOTCONN else errno_name(error)
        return NoResponse(ErrorKind.RESET, f"{verb} {name}")


def aborted() -> NoResponse:
    """Return the error for a response that broke off."""
    return NoResponse(ErrorKind.ABORTED, "aborted")


def hang_up() -> NoResponse:
    """Return the error for a connection closed before a response."""
    return NoResponse(ErrorKind.HANG_UP, "socket hang up")


def connect_failed(error: OSError, address: str) -> NoResponse:
    """Map an error of ``socket.connect``. `address` is ``ip:port``."""
    if isinstance(error, TimeoutError):  # ours or the kernel's
        return NoResponse(ErrorKind.CONNECT_TIMEOUT, f"connect ETIMEDOUT {address}")
    kind = ErrorKind.CONNECT_REFUSED if error.errno == errno.ECONNREFUSED else ErrorKind.CONNECT_FAILED
    return NoResponse(kind, f"connect {errno_name(error)} {address}")


def tls_failed(error: ssl.SSLError) -> NoResponse:
    """Map a TLS error: OpenSSL's reason for a certificate, else its words.

    ``error.reason`` is None where Python's table of names is older than OpenSSL's.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return NoResponse(ErrorKind.TLS, error.verify_message)
    words = _OPENSSL_WORDS.fullmatch(error.strerror or "")
    return NoResponse(ErrorKind.TLS, f"TLS failed: {words[1].lower()}" if words else "TLS failed")


def errno_name(error: OSError) -> str:
    """Return a name such as ``ECONNRESET``; ``EIO`` for an error without a number."""
    return errno.errorcode.get(error.errno or 0, "EIO")
