"""What one attempt knows while it runs: its deadline, its timings, and how errors of its socket are worded.

Owns the time budget and the texts of the contract's error table. Touches no socket.
"""

import errno
import re
import ssl
import time
from dataclasses import dataclass, field
from enum import IntEnum, auto
from types import TracebackType

from webhooks.errors import ErrorKind, NoResponse
from webhooks.models.url import RequestUrl

#: Python's text of an error of OpenSSL: in brackets its names for library and reason, and at the end a line of C.
_OPENSSL_WORDS = re.compile(r"(?:\[[^\]]*\] )?(.+?)(?: \(_ssl\.c:[0-9]+\))?")


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds that each phase took; also of the phase in which the attempt failed.

    ``None``: the phase did not take place, because a connection was reused or an earlier phase failed.
    """

    lookup_ms: float | None
    #: TCP alone, over all addresses tried; through a proxy also its look-up and the tunnel.
    connect_ms: float | None
    #: The TLS handshake.
    tls_ms: float | None
    #: Writing head and body into the socket.
    send_ms: float | None
    #: From the request written to the head of the response read.
    wait_ms: float | None
    #: Reading the body.
    read_ms: float | None
    total_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request."""

    #: ``None``: no response came.
    status: int | None
    #: The response body, readable; where no response came, the error in the contract's words.
    text: str
    #: ``None`` when a response came.
    error_kind: ErrorKind | None
    #: The body had more bytes than are kept.
    cut: bool
    #: ``ip:port`` or ``[ipv6]:port`` of the connection; ``None`` when none was made.
    peer: str | None
    timings: Timings
    #: Seconds that the receiver asks us to wait, 0 or more, however many; ``None``: it asks for nothing that we know.
    retry_after_s: float | None = None
    #: An unforeseen error of our own, for the log; `error_kind` is INTERNAL then. ``None`` as a rule.
    defect: Exception | None = None


class Phase(IntEnum):
    """The phases that are timed, in their order. Numbers, because those are found in a dict without Python code."""

    LOOKUP = auto()
    CONNECT = auto()
    TLS = auto()
    SEND = auto()
    WAIT = auto()
    READ = auto()


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt, from its request to its answer."""

    target: RequestUrl
    connect_timeout_s: float
    total_timeout_s: float
    started: float = field(default_factory=time.monotonic)
    #: ``ip:port``; ``None`` until a TCP connection, or a tunnel, stands.
    peer: str | None = None
    #: Bytes of the response that have arrived, over the connection now in use.
    received_bytes: int = 0
    _durations: dict[Phase, float] = field(default_factory=dict)

    @property
    def deadline(self) -> float:
        """When the attempt has to be over, on the monotonic clock."""
        return self.started + self.total_timeout_s

    def remaining_s(self) -> float:
        """Return the seconds left, more than 0.

        Raises:
            NoResponse: kind TIMEOUT.
        """
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise self.timed_out()
        return remaining

    def timed_out(self) -> NoResponse:
        """Return the error for a passed deadline, in the contract's words."""
        return NoResponse(ErrorKind.TIMEOUT, f"timeout of {round(self.total_timeout_s * 1000)}ms exceeded")

    def timing(self, phase: Phase) -> "_Stopwatch":
        """Measure a phase: a context manager."""
        return _Stopwatch(self._durations, phase)

    def note(self, phase: Phase, seconds: float) -> None:
        """Note how long a phase took."""
        self._durations[phase] = seconds

    def timings(self) -> Timings:
        """Return what was measured so far, the total up to now."""
        # To the microsecond: what the clock tells beyond is noise in a log.
        took = {phase: round(seconds * 1000, 3) for phase, seconds in self._durations.items()}
        return Timings(
            took.get(Phase.LOOKUP),
            took.get(Phase.CONNECT),
            took.get(Phase.TLS),
            took.get(Phase.SEND),
            took.get(Phase.WAIT),
            took.get(Phase.READ),
            round((time.monotonic() - self.started) * 1000, 3),
        )

    def start_over(self) -> None:
        """Forget the try that met a stale connection; its time still counts against the deadline and in the total."""
        self.received_bytes = 0
        self.peer = None
        self._durations.clear()

    def read_failed(self, error: OSError) -> NoResponse:
        """Word an error of reading, by its type."""
        if isinstance(error, TimeoutError) and error.errno is None:
            return self.timed_out()
        if self.received_bytes:
            return NoResponse(ErrorKind.ABORTED, "aborted")
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return hang_up()
        if isinstance(error, ssl.SSLError):
            return tls_failed(error)
        # Python's ssl says ENOTCONN of a connection that was reset before the handshake.
        name = "ECONNRESET" if error.errno == errno.ENOTCONN else errno_name(error)
        return NoResponse(ErrorKind.RESET, f"read {name}")

    def write_failed(self, error: OSError) -> NoResponse:
        """Word an error of writing, by its type."""
        if isinstance(error, TimeoutError) and error.errno is None:
            return self.timed_out()
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return NoResponse(ErrorKind.RESET, "write EPIPE")
        if isinstance(error, ssl.SSLError):
            return tls_failed(error)
        return NoResponse(ErrorKind.RESET, f"write {errno_name(error)}")


class _Stopwatch:
    # A class, not @contextmanager: this runs five times per attempt, and a generator costs several times as much.
    __slots__ = ("_durations", "_phase", "_started")

    def __init__(self, durations: dict[Phase, float], phase: Phase) -> None:
        self._durations = durations
        self._phase = phase

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._durations[self._phase] = time.monotonic() - self._started


def hang_up() -> NoResponse:
    """Return the error for a connection closed before a response."""
    return NoResponse(ErrorKind.HANG_UP, "socket hang up")


def connect_failed(error: OSError, address: str) -> NoResponse:
    """Word an error of the TCP connection.

    Args:
        error: as ``socket.connect`` raised it.
        address: ``ip:port``.
    """
    if isinstance(error, TimeoutError):  # ours or the kernel's
        return NoResponse(ErrorKind.CONNECT_TIMEOUT, f"connect ETIMEDOUT {address}")
    kind = ErrorKind.CONNECT_REFUSED if error.errno == errno.ECONNREFUSED else ErrorKind.CONNECT_FAILED
    return NoResponse(kind, f"connect {errno_name(error)} {address}")


def tls_failed(error: ssl.SSLError) -> NoResponse:
    """Word a TLS error: OpenSSL's reason for a certificate, else its words for the error.

    ``error.reason`` is not enough: it is None where Python's table of names is older than OpenSSL's.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return NoResponse(ErrorKind.TLS, error.verify_message)
    words = _OPENSSL_WORDS.fullmatch(error.strerror or "")
    return NoResponse(ErrorKind.TLS, f"TLS failed: {words[1].lower()}" if words else "TLS failed")


def errno_name(error: OSError) -> str:
    """Return ``ECONNRESET`` and the like; ``EIO`` for an error without a number."""
    return errno.errorcode.get(error.errno or 0, "EIO")
