"""An event loop: many non-blocking requests, begun in any thread and continued in one."""

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from webhooks.sender.connection import Connection
from webhooks.sender.idle import IdleConnections
from webhooks.sender.nonblocking import InFlightRequest

T = TypeVar("T")

#: Between two sweeps of the idle connections.
_SWEEP_EVERY_S = 1.0


class Loop(Generic[T]):
    """Runs the requests of jobs. `admit`, `begin`, `forget`, `end_one` and `close` may be called from any thread.

    A connection is registered once. Between two requests its events mean that it cannot be used any more.
    """

    def __init__(
        self,
        *,
        begin: Callable[[T], InFlightRequest | None],
        advance: Callable[[T], bool],
        expire: Callable[[T], None],
        fail: Callable[[T, Exception], None],
        idle: IdleConnections,
        most: int,
    ) -> None:
        """Make a loop. Only `begin` and `advance` may raise.

        Args:
            begin: begins a job; returns its request, not yet written. None: it is over, or another thread continues.
            advance: continues a job whose request is writable or readable; returns whether the loop is done with it.
                It calls `forget` before it gives the connection back.
            expire: gets a job whose deadline has passed.
            fail: gets a job that raised, and the error.
            idle: connections between two requests.
            most: maximum number of jobs from `admit` to `end_one`.
        """
        self._begin = begin
        self._advance = advance
        self._expire = expire
        self._fail = fail
        self._idle = idle
        self._most = most
        #: Jobs beyond `most`, and the number of the others; they change with the lock, as does `_running`.
        self._waiting: deque[T] = deque()
        self._begun = 0
        self._lock = threading.Lock()
        #: The jobs whose requests are written or read, oldest first.
        self._running: dict[Connection, tuple[T, InFlightRequest]] = {}
        self._sweep_at: float | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._is_awake = False
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def admit(self, jobs: Sequence[T]) -> Sequence[T]:
        """Add jobs; return those that the caller passes to `begin` now. The thread begins the others."""
        with self._lock:
            room = 0 if self._waiting else max(0, self._most - self._begun)
            self._begun += len(jobs[:room])
            self._waiting.extend(jobs[room:])
        return jobs[:room]

    def begin(self, job: T) -> None:
        """Begin a job, and write its request as far as that does not block."""
        try:
            request = self._begin(job)
        except Exception as error:  # noqa: BLE001 - one job must not end the others
            self._fail(job, error)
            return
        if request is None:
            return
        connection, deadline = request.connection, request.attempt.deadline
        with connection.lock:
            with self._lock:
                is_first = not self._running
                self._running[connection] = job, request
            if not self._is_done(job):
                connection.watch(self._selector, request.events)
        if is_first and (self._sweep_at is None or deadline < self._sweep_at):
            self._wake()  # it waits for no other deadline

    def forget(self, request: InFlightRequest) -> None:
        """Ignore a request from now on."""
        with self._lock:
            self._running.pop(request.connection, None)

    def end_one(self) -> None:
        """Count a job as over; called once per job."""
        with self._lock:
            self._begun -= 1
        if threading.current_thread() is not self._thread:
            self._wake()  # for the next job, and for a connection given back

    def close(self) -> None:
        """Wait until all jobs are over."""
        self._is_closing = True
        self._wake()
        self._thread.join()

    def _wake(self) -> None:
        if not self._is_awake:
            self._is_awake = True
            with suppress(OSError):  # the buffer is full, or the thread has ended
                self._wake_in.send(b"\0")

    def _run(self) -> None:
        try:
            while not (self._is_closing and not self._waiting and not self._begun):
                self._take_turn()
        finally:
            self._selector.close()
            self._wake_in.close()
            self._wake_out.close()

    def _take_turn(self) -> None:
        for key, _ in self._selector.select(self._longest_wait_s()):
            if key.data is not None:
                self._go_on(key.data)
                continue
            self._wake_out.recv(4096)
            self._is_awake = False
            if self._sweep_at is None:
                self._sweep_at = time.monotonic() + _SWEEP_EVERY_S
        self._end_late_ones()
        while self._waiting and (job := self._next_waiting()) is not None:
            self.begin(job)

    def _next_waiting(self) -> T | None:
        with self._lock:
            if self._begun >= self._most:
                return None
            self._begun += 1
            return self._waiting.popleft()

    def _go_on(self, connection: Connection) -> None:
        with connection.lock:
            running = self._running.get(connection)
            if running is None:
                self._idle.drop(connection)
            elif not self._is_done(running[0]):
                connection.watch(self._selector, running[1].events)

    def _is_done(self, job: T) -> bool:
        try:
            return self._advance(job)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(job, error)
            return True

    def _first(self) -> tuple[T, InFlightRequest] | None:
        """Return the oldest job. All have the same time-out, so it expires first."""
        with self._lock:
            return next(iter(self._running.values()), None)

    def _longest_wait_s(self) -> float | None:
        """Return the time until the next deadline or sweep."""
        first = self._first()
        due = [first[1].attempt.deadline] if first is not None else []
        if self._sweep_at is not None:
            due.append(self._sweep_at)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _end_late_ones(self) -> None:
        present = time.monotonic()
        while (first := self._first()) is not None and first[1].attempt.deadline <= present:
            with first[1].connection.lock:
                self._expire(first[0])
        if self._sweep_at is not None and self._sweep_at <= present:
            has_more = self._idle.sweep() or bool(self._running)
            self._sweep_at = present + _SWEEP_EVERY_S if has_more else None
