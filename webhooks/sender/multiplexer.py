"""Many exchanges at a time in one thread.

Owns the waiting: which exchange is written, read, or out of time. Never knows what they are for; what is to be sent,
and what comes of it, is its user's. Called by `express`.
"""

import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Generic, TypeVar

from webhooks.sender.attempt import Answer
from webhooks.sender.exchange import Exchange

T = TypeVar("T")


class Multiplexer(Generic[T]):
    """Carries out exchanges for items of its user. All of `run` is one thread; `put` and `close` are anybody's."""

    def __init__(
        self,
        begin: Callable[[T], Exchange | None],
        end: Callable[[T, Answer | None], None],
        fail: Callable[[T, Exception], None],
        most: int,
    ) -> None:
        """Make one; `run` runs it. What is given must not raise.

        Args:
            begin: returns the exchange of an item, not yet written; None where the item is not for here.
            end: gets an item whose exchange has ended, and the answer; None: a thread has to go on with it.
            fail: gets an item whose exchange met a defect.
            most: exchanges at one time.
        """
        self._begin = begin
        self._end = end
        self._fail = fail
        self._most = most
        self._waiting: deque[T] = deque()
        self._running: dict[int, tuple[T, Exchange]] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._is_awake = False
        self._is_closing = False

    def put(self, items: Iterable[T]) -> None:
        """Have items' exchanges carried out."""
        self._waiting.extend(items)
        self._wake()

    def close(self) -> None:
        """Have `run` return once all that was put is over."""
        self._is_closing = True
        self._wake()

    def _wake(self) -> None:
        if not self._is_awake:
            self._is_awake = True
            with suppress(BlockingIOError):  # it is about to wake
                self._wake_in.send(b"\0")

    def run(self) -> None:
        """Carry out exchanges until `close`."""
        try:
            while not (self._is_closing and not self._waiting and not self._running):
                self._take_turn()
        finally:
            self._selector.close()
            self._wake_in.close()
            self._wake_out.close()

    def _take_turn(self) -> None:
        for key, _ in self._selector.select(self._longest_wait_s()):
            if key.fileobj is self._wake_out:
                self._wake_out.recv(4096)
                # From here on whoever puts something wakes it again.
                self._is_awake = False
                continue
            self._go_on(key.fd)
        self._expire()
        while self._waiting and len(self._running) < self._most:
            self._start(self._waiting.popleft())

    def _start(self, item: T) -> None:
        exchange = self._begin(item)
        if exchange is None:
            return
        try:
            exchange.write()
        except Exception as error:  # noqa: BLE001 - one item must not end the others
            exchange.drop()
            self._fail(item, error)
            return
        if exchange.needs_thread:
            self._end(item, None)
            return
        fd = exchange.socket.fileno()
        self._selector.register(fd, selectors.EVENT_READ)
        self._running[fd] = item, exchange

    def _go_on(self, fd: int) -> None:
        item, exchange = self._running[fd]
        try:
            answer = exchange.read()
        except Exception as error:  # noqa: BLE001 - likewise
            self._forget(fd)
            exchange.drop()
            self._fail(item, error)
            return
        if answer is not None or exchange.needs_thread:
            self._forget(fd)
            self._end(item, answer)

    def _forget(self, fd: int) -> None:
        del self._running[fd]
        self._selector.unregister(fd)

    def _longest_wait_s(self) -> float | None:
        """Return the seconds until the first one is out of time; they were begun in that order."""
        if self._waiting and len(self._running) < self._most:
            return 0
        first = next(iter(self._running.values()), None)
        return None if first is None else max(0.0, first[1].attempt.deadline - time.monotonic())

    def _expire(self) -> None:
        present = time.monotonic()
        while (first := next(iter(self._running.items()), None)) and first[1][1].attempt.deadline <= present:
            fd, (item, exchange) = first
            self._forget(fd)
            self._end(item, exchange.expire())
