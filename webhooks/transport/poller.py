"""The poller: waits for the channels of a connection."""

import threading
from typing import Any

from kombu.transport import redis as plain
from redis.exceptions import ResponseError

from webhooks.transport.script_runner import as_connection_error

#: Maximum interval between turns of the event loop, as acks from other threads do not wake it.
_TURN_S = 0.01


class Poller(plain.MultiChannelPoller):
    """Waits for several channels, with or without Celery's event loop."""

    #: Celery's event loop, if any.
    loop: Any = None
    #: The polling thread.
    thread_id: int | None = None
    _turns: Any = None
    #: Whether a turn is to come that was asked for.
    _is_asked = False

    def turn_with(self, loop: Any) -> None:
        """Join Celery's event loop."""
        self.loop = loop
        self._is_asked = False
        if self._turns is not None:  # of the previous connection
            self._turns.cancel()
        self._turns = loop.call_repeatedly(_TURN_S, _nothing)

    def take_turn_soon(self) -> None:
        """Make Celery's event loop take a turn; from any thread."""
        if not self._is_asked:
            self._is_asked = True
            self.loop.call_soon(_nothing)

    def on_poll_start(self) -> None:
        """Do what is due before each wait. kombu's timers run only with an event loop."""
        self.thread_id = threading.get_ident()
        # First: who asks from now on may be too late for this turn.
        self._is_asked = False
        channels = tuple(self._channels)
        try:
            for channel in channels:
                channel.look_after()
            if channels and not any(channel.is_about_to_take() for channel in channels):
                channels[0].flush()  # they share one outbox
        except ResponseError as error:
            raise as_connection_error(error) from error
        super().on_poll_start()


def _nothing() -> None:
    pass
