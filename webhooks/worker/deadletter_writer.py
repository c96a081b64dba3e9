"""Writes each dead letter to MongoDB before its message is acked."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from webhooks.config import get_settings
from webhooks.delivery.meters import Fault, meters
from webhooks.delivery.services import get_services
from webhooks.delivery.stopping import stopping
from webhooks.errors import StoreUnavailable, trace
from webhooks.store.deadletters import DeadLetter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _PendingLetter:
    letter: DeadLetter
    finish: Callable[[], object]
    give_back: Callable[[], object]
    #: By `time.monotonic`.
    give_up_at: float


class DeadLetterWriter:
    """Writes dead letters in a thread of its own, as the consumer's thread must not wait for MongoDB.

    The messages of pending letters are unacked. So the prefetch limit bounds the queue, and the broker redelivers them
    if this process dies.
    """

    def __init__(self) -> None:
        self._pending: queue.SimpleQueue[_PendingLetter] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def write(self, letter: DeadLetter, finish: Callable[[], object], give_back: Callable[[], object]) -> None:
        """Store a letter in the background.

        Args:
            letter: the letter.
            finish: acks the message; called once the letter is stored.
            give_back: returns the message to its queue; called instead if MongoDB stays unavailable.
        """
        self._pending.put(
            _PendingLetter(letter, finish, give_back, time.monotonic() + get_settings().mongodb_timeout_s)
        )
        with self._lock:
            if self._thread is None:  # most workers never need it
                self._thread = threading.Thread(target=self._run, name="dead-letters", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            pending = self._pending.get()
            try:
                self._write(pending)
            except Exception as error:  # noqa: BLE001
                # For example an ack on a lost connection: the message comes back and makes the same letter.
                logger.error("dead letter %s: its message stays unacked: %s", pending.letter.id, trace(error))  # noqa: TRY400

    def _write(self, pending: _PendingLetter) -> None:
        letter = pending.letter
        while time.monotonic() < pending.give_up_at:
            try:
                get_services().dead_letters.write(letter)
            except StoreUnavailable as error:
                logger.warning("holding a dead letter: %s", error)
                if stopping.wait(1):
                    return  # the message goes back when the worker closes its connection
            else:
                logger.error(
                    "dead letter %s: %s, task=%s message=%s queue=%s: %s",
                    *(letter.id, letter.reason, letter.task, letter.message_id, letter.queue, letter.text),
                )
                meters.count_fault(Fault.DEAD_LETTER)
                pending.finish()
                return
        pending.give_back()


dead_letters = DeadLetterWriter()
