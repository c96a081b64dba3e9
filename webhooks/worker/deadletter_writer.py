"""Writes dead letters, each before its message is acked: Celery would ack and forget the message."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from webhooks.config import get_settings
from webhooks.delivery.services import get_services
from webhooks.delivery.stopping import stopping
from webhooks.errors import StoreUnavailable, trace
from webhooks.store.deadletters import DeadLetter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _PendingLetter:
    """A letter on its way to MongoDB, and what becomes of its message then."""

    letter: DeadLetter
    #: Acks the message.
    finish: Callable[[], object]
    #: Gives the message back to the broker.
    give_back: Callable[[], object]
    give_up_at: float


class DeadLetterWriter:
    """Stores dead letters, each before its message is acked, in a thread: the consumer's must not wait for MongoDB.

    Messages on their way are unacked, so the prefetch limit bounds how many there are, and whatever happens to this
    process the broker gives them out again.
    """

    def __init__(self) -> None:
        self._pending: queue.SimpleQueue[_PendingLetter] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def write(self, letter: DeadLetter, finish: Callable[[], object], give_back: Callable[[], object]) -> None:
        """Store a letter soon, and then do away with its message.

        Args:
            letter: what to store.
            finish: acks the message; called once the letter is stored.
            give_back: returns the message to its queue; called instead when MongoDB stays away.
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
                self._carry_out(pending)
            except Exception as error:  # noqa: BLE001
                # Such as an ack after the connection was lost: the message comes back, and its letter is the same.
                logger.error("dead letter %s: its message stays unacked: %s", pending.letter.id, trace(error))  # noqa: TRY400

    def _carry_out(self, pending: _PendingLetter) -> None:
        letter = pending.letter
        while time.monotonic() < pending.give_up_at:
            try:
                get_services().dead_letters.write(letter)
            except StoreUnavailable as error:
                logger.warning("holding a dead letter: %s", error)
                if stopping.wait(1):
                    return  # unacked, so it goes back when the worker closes its connection
            else:
                logger.error(
                    "dead letter %s: %s, task=%s message=%s queue=%s: %s",
                    *(letter.id, letter.reason, letter.task, letter.message_id, letter.queue, letter.text),
                )
                pending.finish()
                return
        pending.give_back()


#: The writer of this process.
dead_letters = DeadLetterWriter()
