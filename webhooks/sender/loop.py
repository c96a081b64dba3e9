"""An event loop: many non-blocking requests in one thread."""

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Generic, TypeVar

from webhooks.sender.nonblocking import InFlightRequest

T = TypeVar("T")

#: Between two sweeps of the idle connections.
_SWEEP_EVERY_S = 1.0


class Loop(Generic[T]):
    """Runs the requests of jobs in one thread. `put`, `end_one` and `close` may be called from any thread."""

    def __init__(
        self,
        *,
        begin: Callable[[T], InFlightRequest | None],
        advance: Callable[[T], bool],
        expire: Callable[[T], None],
        fail: Callable[[T, Exception], None],
        sweep: Callable[[], bool],
        most: int,
    ) -> None:
        """Make a loop. Only `begin` and `advance` may raise.

        Args:
            begin: begins a job; returns its request, not yet written. None: it is over, or another thread continues.
            advance: continues a job whose request is writable or readable; returns whether the loop is done with it.
            expire: gets a job whose deadline has passed.
            fail: gets a job that raised, and the error.
            sweep: closes unusable idle connections; returns whether any is left.
            most: maximum number of jobs from `begin` to `end_one`.
        """
        self._begin = begin
        self._advance = advance
        self._expire = expire
        self._fail = fail
        self._sweep = sweep
        self._most = most
        self._waiting: deque[T] = deque()
        #: Number of jobs from `begin` to `end_one`, and its lock.
        self._begun = 0
        self._lock = threading.Lock()
        #: The jobs that wait here, by file descriptor, oldest first.
        self._running: dict[int, tuple[T, InFlightRequest]] = {}
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

    def put(self, jobs: Iterable[T]) -> None:
        """Add jobs."""
        self._waiting.extend(jobs)
        self._wake()

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
            if key.fileobj is self._wake_out:
                self._wake_out.recv(4096)
                self._is_awake = False
                if self._sweep_at is None:
                    self._sweep_at = time.monotonic() + _SWEEP_EVERY_S
                continue
            self._go_on(key.fd, key.events)
        self._end_late_ones()
        while self._waiting and self._begun < self._most:
            with self._lock:
                self._begun += 1
            self._start(self._waiting.popleft())

    def _start(self, job: T) -> None:
        try:
            request = self._begin(job)
        except Exception as error:  # noqa: BLE001 - one job must not end the others
            self._fail(job, error)
            return
        if request is None or self._is_done(job):
            return
        fd = request.connection.sock.fileno()
        self._selector.register(fd, request.events)
        self._running[fd] = job, request

    def _go_on(self, fd: int, awaited: int) -> None:
        job, request = self._running[fd]
        if self._is_done(job):
            self._forget(fd)
        elif request.events != awaited:
            self._selector.modify(fd, request.events)

    def _is_done(self, job: T) -> bool:
        try:
            return self._advance(job)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(job, error)
            return True

    def _forget(self, fd: int) -> None:
        del self._running[fd]
        self._selector.unregister(fd)

    def _longest_wait_s(self) -> float | None:
        """Return the time until the next deadline or sweep."""
        if self._waiting and self._begun < self._most:
            return 0
        first = next(iter(self._running.values()), None)
        due = [first[1].attempt.deadline] if first is not None else []
        if self._sweep_at is not None:
            due.append(self._sweep_at)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _end_late_ones(self) -> None:
        present = time.monotonic()
        # All have the same time-out, so the oldest expire first.
        while (first := next(iter(self._running.items()), None)) and first[1][1].attempt.deadline <= present:
            fd, (job, _) = first
            self._forget(fd)
            self._expire(job)
        if self._sweep_at is not None and self._sweep_at <= present:
            has_more = self._sweep() or bool(self._running)
            self._sweep_at = present + _SWEEP_EVERY_S if has_more else None
