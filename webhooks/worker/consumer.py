"""The worker's consumer: dead-letters every message that Celery would drop or crash on."""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from celery.exceptions import WorkerShutdown
from celery.platforms import EX_FAILURE
from celery.worker import state
from celery.worker.consumer import Consumer, consumer
from celery.worker.request import Request
from kombu.exceptions import ContentDisallowed
from kombu.message import Message

from webhooks.delivery.stopping import stopping
from webhooks.errors import BrokerTooOld, trace
from webhooks.rules.remedies import explain_broker
from webhooks.store.deadletters import DeadLetter, Reason
from webhooks.transport.messages import Message as RedisMessage
from webhooks.worker.deadletter_writer import dead_letters
from webhooks.worker.pool import BatchPool
from webhooks.worker.request import DurableRequest

logger = logging.getLogger(__name__)

#: ``task-started`` is sent for tasks that run longer than this. Also the interval of that check.
_STARTED_AFTER_S = 0.5
#: Interval at which buffered task events are sent, and the buffer size that sends them earlier.
_EVENTS_EVERY_S = 0.1
_MAX_EVENTS = 1_000


class _RemedyFilter(logging.Filter):
    """Adds the remedy to the line in which Celery says that it cannot connect."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg == consumer.CONNECTION_ERROR and isinstance(record.args, tuple):
            record.args = tuple(explain_broker(one) if isinstance(one, Exception) else one for one in record.args)
        return True


class DurableConsumer(Consumer):
    """Dead-letters messages that Celery's consumer drops or crashes on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        pool = cast("Any", self).pool
        if isinstance(pool, BatchPool):
            pool.consumer = self

    def start(self) -> None:
        """Consume until the worker ends; a broker that is too old ends it with one log line."""
        consumer.logger.addFilter(_RemedyFilter())
        try:
            super().start()
        except BrokerTooOld as error:
            logger.critical("%s", error)
            raise WorkerShutdown(EX_FAILURE) from None

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Dead-letter a message whose body cannot be decoded."""
        self._write_dead_letter(message, Reason.UNREADABLE, f"cannot be decoded: {exc}")

    def on_unknown_message(self, body: object, message: Message) -> None:
        """Dead-letter a message that is not a task message."""
        self._write_dead_letter(message, Reason.UNREADABLE, "is not a task's message")

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Dead-letter the message of an unregistered task."""
        self._write_dead_letter(message, Reason.UNKNOWN_TASK, f"no task is named {exc}")

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Dead-letter a message that its task cannot accept."""
        reason = Reason.UNREADABLE if isinstance(exc, ContentDisallowed) else Reason.INVALID_TASK
        self._write_dead_letter(message, reason, str(exc))

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[..., None]:
        """Return the callback for received messages."""
        handle = super().create_task_handler(*args, **kwargs)
        events = cast("Any", self).event_dispatcher
        if events:
            events.buffer_limit = _MAX_EVENTS
        broker_errors = (*self.connection_errors, *self.channel_errors)

        def on_task_received(message: Message) -> None:
            try:
                handle(message)
            except Exception as error:
                # kombu's Redis transport lists KeyError as a connection error. A message without an id would make the
                # worker reconnect and receive it again, endlessly.
                if isinstance(error, broker_errors) and not isinstance(error, KeyError):
                    raise
                self._survive(message, error)

        return on_task_received

    def register_with_event_loop(self, hub: Any) -> None:
        """Join Celery's event loop."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(_EVENTS_EVERY_S, self._flush_events)
        hub.call_repeatedly(_STARTED_AFTER_S, self._send_started)

    def on_send_event_buffered(self) -> None:
        """Do nothing: a timer sends buffered events, instead of each turn of the event loop."""

    @staticmethod
    def _send_started() -> None:
        before = time.time() - _STARTED_AFTER_S
        for request in state.active_requests:
            if isinstance(request, DurableRequest) and (request.time_start or before) < before:
                request.send_started()

    def call_soon_ack(self, p: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        """Ack or reject a message. On our transport any thread may do so at once; the next take carries it."""
        if isinstance(getattr(p, "__self__", None), RedisMessage):
            return p(*args, **kwargs)
        return super().call_soon_ack(p, *args, **kwargs)

    def shutdown(self) -> None:
        """Let the pool finish its running jobs while acks still have a connection, then close."""
        pool = cast("Any", self).pool
        if isinstance(pool, BatchPool):
            pool.drain()
        super().shutdown()

    def apply_eta_task(self, task: Request) -> None:
        """Pass a request to the pool once it is due."""
        try:
            super().apply_eta_task(task)
        except Exception as error:  # noqa: BLE001 - see `_survive`
            state.task_ready(task)
            cast("Any", self).qos.decrement_eventually()
            self._survive(task.message, error)

    def _survive(self, message: Message, error: Exception) -> None:
        """Dead-letter a message on which Celery's own code failed.

        Such an error, for example from a header of an unexpected type, would end this worker and every later one.
        """
        if stopping.is_set():
            raise error  # for example, the pool no longer accepts jobs
        logger.error("a message could not be taken: %s", trace(error))
        if not message.acknowledged:
            self._write_dead_letter(message, Reason.INVALID_TASK, f"cannot be taken: {type(error).__name__}")

    def _write_dead_letter(self, message: Message, reason: Reason, text: str) -> None:
        def settle(settle: Callable[..., None], *args: object) -> None:
            try:
                settle(logger, self.connection_errors, *args)
            except Exception as error:  # noqa: BLE001
                # In the event loop this would end the worker. The broker redelivers the message.
                logger.error("the message of a dead letter stays unacked: %s", trace(error))  # noqa: TRY400

        dead_letters.write(
            DeadLetter.make(reason, text, message, self.hostname),
            # Only the event loop's thread may use the connection.
            finish=partial(self.call_soon, settle, message.ack_log_error),
            give_back=partial(self.call_soon, settle, message.reject_log_error, True),
        )
