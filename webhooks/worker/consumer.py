"""The worker's consumer: dead-letters every message that Celery would drop, or die of."""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from celery.exceptions import WorkerShutdown
from celery.platforms import EX_FAILURE
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu.exceptions import ContentDisallowed
from kombu.message import Message

from webhooks.delivery.stopping import stopping
from webhooks.errors import BrokerTooOld, trace
from webhooks.store.deadletters import DeadLetter, Reason
from webhooks.transport.messages import Message as RedisMessage
from webhooks.worker.deadletter_writer import dead_letters
from webhooks.worker.pool import BatchPool
from webhooks.worker.request import DurableRequest
from webhooks.worker.startup_errors import add_remedies

logger = logging.getLogger(__name__)

#: Seconds after which a task that is not over is said to have started, and between two looks.
_STARTED_AFTER_S = 0.5
#: Seconds between two messages with task events, and events that are sent before that.
_TELL_EVERY_S = 0.1
_MAX_EVENTS = 1_000


class DurableConsumer(Consumer):
    """Keeps as a dead letter what Celery's consumer drops, or dies of."""

    def start(self) -> None:
        """Consume until the worker ends; a broker that is too old ends it in one line."""
        add_remedies()
        try:
            super().start()
        except BrokerTooOld as error:
            logger.critical("%s", error)
            raise WorkerShutdown(EX_FAILURE) from None

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Keep a message whose body cannot be read."""
        self._write_dead_letter(message, Reason.UNREADABLE, f"cannot be decoded: {exc}")

    def on_unknown_message(self, body: object, message: Message) -> None:
        """Keep a message that is of no task."""
        self._write_dead_letter(message, Reason.UNREADABLE, "is not a task's message")

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Keep the message of a task that this worker does not have."""
        self._write_dead_letter(message, Reason.UNKNOWN_TASK, f"no task is named {exc}")

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Keep a message that is not as its task needs it."""
        reason = Reason.UNREADABLE if isinstance(exc, ContentDisallowed) else Reason.INVALID_TASK
        self._write_dead_letter(message, reason, str(exc))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        pool = cast("Any", self).pool
        if isinstance(pool, BatchPool):
            pool.consumer = self

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[..., None]:
        """Return what is called with each message."""
        handle = super().create_task_handler(*args, **kwargs)
        events = cast("Any", self).event_dispatcher
        if events:
            events.buffer_limit = _MAX_EVENTS
        broker_errors = (*self.connection_errors, *self.channel_errors)

        def on_task_received(message: Message) -> None:
            try:
                handle(message)
            except Exception as error:
                # kombu's Redis transport counts KeyError among the connection's errors, so that a message without an
                # id makes the worker connect anew, get it again, and so on without end.
                if isinstance(error, broker_errors) and not isinstance(error, KeyError):
                    raise
                self._survive(message, error)

        return on_task_received

    def register_with_event_loop(self, hub: Any) -> None:
        """Join Celery's event loop."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(_TELL_EVERY_S, self._flush_events)
        hub.call_repeatedly(_STARTED_AFTER_S, self._tell_started)

    def on_send_event_buffered(self) -> None:
        """Do nothing: buffered events are sent ten times a second, and not with each turn of the event loop."""

    @staticmethod
    def _tell_started() -> None:
        before = time.time() - _STARTED_AFTER_S
        for request in state.active_requests:
            if isinstance(request, DurableRequest) and (request.time_start or before) < before:
                request.tell_started()

    def call_soon_ack(self, p: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        """Ack or reject a message; on our transport at once, as any thread may, and the next take carries it."""
        if isinstance(getattr(p, "__self__", None), RedisMessage):
            return p(*args, **kwargs)
        return super().call_soon_ack(p, *args, **kwargs)

    def shutdown(self) -> None:
        """End what the pool has begun while acks still have a connection, then close."""
        pool = cast("Any", self).pool
        if isinstance(pool, BatchPool):
            pool.drain()
        super().shutdown()

    def apply_eta_task(self, task: Request) -> None:
        """Hand a request to the pool once it is due."""
        try:
            super().apply_eta_task(task)
        except Exception as error:  # noqa: BLE001 - likewise
            state.task_ready(task)
            cast("Any", self).qos.decrement_eventually()
            self._survive(task.message, error)

    def _survive(self, message: Message, error: Exception) -> None:
        """Keep a message on which Celery's own code failed.

        Such an error, as a header of an unforeseen type causes, would end the worker, and the next one that gets the
        message.
        """
        if stopping.is_set():
            raise error  # such as that of a pool that takes nothing more
        logger.error("a message could not be taken: %s", trace(error))
        if not message.acknowledged:
            self._write_dead_letter(message, Reason.INVALID_TASK, f"cannot be taken: {type(error).__name__}")

    def _write_dead_letter(self, message: Message, reason: Reason, text: str) -> None:
        def settle(settle: Callable[..., None], *args: object) -> None:
            try:
                settle(logger, self.connection_errors, *args)
            except Exception as error:  # noqa: BLE001
                # In the event loop this would end the worker. The broker gives the message out again.
                logger.error("the message of a dead letter stays unacked: %s", trace(error))  # noqa: TRY400

        dead_letters.write(
            DeadLetter.make(reason, text, message, self.hostname),
            # Connections are the event loop's own.
            finish=partial(self.call_soon, settle, message.ack_log_error),
            give_back=partial(self.call_soon, settle, message.reject_log_error, True),
        )
