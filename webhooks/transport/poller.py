"""Waits for several channels."""

import threading
from typing import Any

from kombu.transport import redis as plain
from redis.exceptions import ResponseError

from webhooks.transport.script_runner import as_connection_error

#: Seconds between two turns of the event loop, at most: acks come from other threads, which cannot wake it.
_TURN_S = 0.01


class Poller(plain.MultiChannelPoller):
    """Waits for several channels, within Celery's event loop or without one."""

    #: Celery's event loop; None where there is none, as with the gevent pool.
    loop: Any = None
    #: The thread that polls.
    thread_id: int | None = None
    _turns: Any = None

    def turn_with(self, loop: Any) -> None:
        """Take part in Celery's event loop."""
        self.loop = loop
        if self._turns is not None:  # of the connection before
            self._turns.cancel()
        self._turns = loop.call_repeatedly(_TURN_S, _nothing)

    def take_turn_soon(self) -> None:
        """Have Celery's event loop take a turn. Any thread may."""
        self.loop.call_soon(_nothing)

    def on_poll_start(self) -> None:
        """Do what is due before waiting. Comes before each wait in both modes; kombu's timers come in one alone."""
        self.thread_id = threading.get_ident()
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
