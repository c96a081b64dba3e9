"""A request in flight: written and read without blocking, over a new connection or a kept one."""

import selectors
import ssl
import time

from webhooks.errors import ErrorKind, NoResponse
from webhooks.sender.connection import Connection
from webhooks.sender.deadline import Attempt, Phase
from webhooks.sender.response import ResponseReader

#: More than a TLS record, so that no data stays in OpenSSL, where polling the socket does not show it.
_READ_BYTES = 32 * 1024


class InFlightRequest:
    """A request and its response so far."""

    __slots__ = ("_phase", "_since", "_unsent", "_write_error", "attempt", "connection", "events", "reader")

    def __init__(self, attempt: Attempt, connection: Connection, data: bytes) -> None:
        self.attempt = attempt
        self.connection = connection
        self.reader = ResponseReader()
        #: What to wait for before the next `advance`: `selectors.EVENT_READ` or `EVENT_WRITE`.
        self.events = selectors.EVENT_WRITE
        self._unsent = memoryview(data)
        #: A receiver may answer, for example 413, and close before it has read the whole body.
        self._write_error: NoResponse | None = None
        self._phase = Phase.SEND
        self._since = time.monotonic()

    def advance(self) -> bytes:
        """Write or read without blocking; return the received part of the body.

        Raises:
            NoResponse: there will be no whole response.
        """
        try:
            if self._unsent:
                self._write()
                return b""
            data = self.connection.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return b""
        except ssl.SSLWantReadError:  # OpenSSL may have to read before it can write, and the other way round
            self.events = selectors.EVENT_READ
            return b""
        except ssl.SSLWantWriteError:
            self.events = selectors.EVENT_WRITE
            return b""
        except OSError as error:
            raise self._fail(self.attempt.io_failed("read", error)) from error
        self.events = selectors.EVENT_READ
        if not data:
            try:
                self.reader.end()
            except NoResponse as error:
                raise self._fail(error) from error
            return b""
        self.attempt.received_bytes += len(data)
        body = self.reader.feed(data)
        if self._phase is Phase.WAIT and self.reader.head is not None:
            self._enter(Phase.READ)
        return body

    def _write(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self.connection.sock.send(self._unsent) :]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            self._write_error = self.attempt.io_failed("write", error)
            if self._write_error.kind is not ErrorKind.RESET:
                raise self._write_error from error
            self._unsent = memoryview(b"")
        self.events = selectors.EVENT_READ
        self._enter(Phase.WAIT)

    def finish(self, *, is_read: bool) -> bool:
        """End the last phase; return whether the connection can be reused, else close it.

        Args:
            is_read: whether the response was read to its end.
        """
        self._enter(self._phase)
        can_be_kept = is_read and self.reader.is_over and self.reader.keeps_connection and self._write_error is None
        if not can_be_kept:
            self.connection.close()
        return can_be_kept

    def _enter(self, phase: Phase) -> None:
        present = time.monotonic()
        self.attempt.note(self._phase, present - self._since)
        self._phase, self._since = phase, present

    def _fail(self, error: NoResponse) -> NoResponse:
        """Return the first cause of a lost connection."""
        if self._write_error is not None and error.kind in (ErrorKind.RESET, ErrorKind.HANG_UP):
            return self._write_error
        return error
