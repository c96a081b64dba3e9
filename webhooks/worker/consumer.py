"""What becomes of messages in a worker besides being run: how they look from outside, and that none is dropped.

Owns the worker's consumer and the request classes of our tasks. Celery acks and forgets a message that it cannot read
and one whose task fails; these keep it as a dead letter first. And Celery shows arguments as the producer described
them, which for a producer with nothing but Celery is the payload. Loaded in workers only.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, cast

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated
from celery.exceptions import InvalidTaskError, Reject, TaskPredicate, WorkerShutdown
from celery.platforms import EX_FAILURE
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu.exceptions import ContentDisallowed
from kombu.message import Message

from webhooks.config import get_settings
from webhooks.delivery.attempt import describe_input
from webhooks.delivery.holding import hold
from webhooks.delivery.services import get_services
from webhooks.delivery.skip import skip
from webhooks.delivery.stopping import stopping
from webhooks.errors import AttemptFailed, BrokerTooOld, InvalidEvent, StoreUnavailable, TaskDefect, WorkersLost, trace
from webhooks.store.deadletters import DeadLetter, Reason
from webhooks.transport.headers import LANE_HEADER
from webhooks.transport.messages import Message as RedisMessage
from webhooks.worker.inplace import InPlaceMessage
from webhooks.worker.pool import BatchPool
from webhooks.worker.startup_errors import add_remedies

logger = logging.getLogger(__name__)

#: Characters of a task's id; AMQP has no more room for one either.
_MAX_NAME = 255
#: More than any setting allows; a number beyond MongoDB's would fail the write that many others share.
_MAX_RETRIES = 1_000_000
#: Seconds after which a task that is not over is said to have started, and between two looks.
_STARTED_AFTER_S = 0.5
#: Seconds between two messages with task events, and events that are sent before that.
_TELL_EVERY_S = 0.1
_MAX_EVENTS = 1_000


# ── Keeping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Burial:
    """A letter on its way to MongoDB, and what becomes of its message then."""

    letter: DeadLetter
    #: Acks the message.
    finish: Callable[[], object]
    #: Gives the message back to the broker.
    give_back: Callable[[], object]
    give_up_at: float


class Undertaker:
    """Stores dead letters, each before its message is acked, in a thread: the consumer's must not wait for MongoDB.

    Messages on their way are unacked, so the prefetch limit bounds how many there are, and whatever happens to this
    process the broker gives them out again.
    """

    def __init__(self) -> None:
        self._burials: queue.SimpleQueue[_Burial] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def bury(self, letter: DeadLetter, finish: Callable[[], object], give_back: Callable[[], object]) -> None:
        """Store a letter soon, and then do away with its message.

        Args:
            letter: what to store.
            finish: acks the message; called once the letter is stored.
            give_back: returns the message to its queue; called instead when MongoDB stays away.
        """
        self._burials.put(_Burial(letter, finish, give_back, time.monotonic() + get_settings().mongodb_timeout_s))
        with self._lock:
            if self._thread is None:  # most workers never need it
                self._thread = threading.Thread(target=self._run, name="dead-letters", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            burial = self._burials.get()
            try:
                self._carry_out(burial)
            except Exception as error:  # noqa: BLE001
                # Such as an ack after the connection was lost: the message comes back, and its letter is the same.
                logger.error("dead letter %s: its message stays unacked: %s", burial.letter.id, trace(error))  # noqa: TRY400

    def _carry_out(self, burial: _Burial) -> None:
        letter = burial.letter
        while time.monotonic() < burial.give_up_at:
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
                burial.finish()
                return
        burial.give_back()


_undertaker = Undertaker()
#: Puts on record what was revoked: the consumer's thread must not wait for MongoDB.
_revoked = ThreadPoolExecutor(1, "revoked")


# ── Messages that do not become a request ───────────────────────────────────────────────────────────────────────────


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
        self._bury(message, Reason.UNREADABLE, f"cannot be decoded: {exc}")

    def on_unknown_message(self, body: object, message: Message) -> None:
        """Keep a message that is of no task."""
        self._bury(message, Reason.UNREADABLE, "is not a task's message")

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Keep the message of a task that this worker does not have."""
        self._bury(message, Reason.UNKNOWN_TASK, f"no task is named {exc}")

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Keep a message that is not as its task needs it."""
        reason = Reason.UNREADABLE if isinstance(exc, ContentDisallowed) else Reason.INVALID_TASK
        self._bury(message, reason, str(exc))

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
            self._bury(message, Reason.INVALID_TASK, f"cannot be taken: {type(error).__name__}")

    def _bury(self, message: Message, reason: Reason, text: str) -> None:
        def settle(settle: Callable[..., None], *args: object) -> None:
            try:
                settle(logger, self.connection_errors, *args)
            except Exception as error:  # noqa: BLE001
                # In the event loop this would end the worker. The broker gives the message out again.
                logger.error("the message of a dead letter stays unacked: %s", trace(error))  # noqa: TRY400

        _undertaker.bury(
            DeadLetter.make(reason, text, message, self.hostname),
            # Connections are the event loop's own.
            finish=partial(self.call_soon, settle, message.ack_log_error),
            give_back=partial(self.call_soon, settle, message.reject_log_error, True),
        )


# ── Requests of our tasks ───────────────────────────────────────────────────────────────────────────────────────────


class DurableRequest(Request):
    """A received message of one of our tasks. Celery drops it when its task fails; this keeps it as a dead letter."""

    #: What the task raised; None before it did.
    _error: object = None
    #: Whether Celery's listeners were told that the task has started.
    is_told_started = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._request_dict.get("retries") is None:  # clients in other languages send null for what they leave out
            self._request_dict["retries"] = 0
        fault = None if isinstance(self.message, InPlaceMessage) else self._find_fault()
        if fault:
            raise InvalidTaskError(fault)
        # Celery's tracer would decode the body once more.
        self._body, self._content_type, self._content_encoding = self._decoded_body, None, None

    @property
    def _decoded_body(self) -> Any:
        # Celery's `_payload` is this behind a lock that all requests share, and costs as much as all the rest.
        return self._Request__payload  # pyright: ignore[reportAttributeAccessIssue]

    def _find_fault(self) -> str | None:
        """Say what is wrong with headers or arguments; None when nothing is.

        Celery does not look at these before a pool thread trips over them, where some errors count as success and
        others leave the message unacked for ever.
        """
        headers, (args, kwargs, embed) = self._request_dict, self._decoded_body
        shadow, limits, eta = headers.get("shadow"), self.time_limits, self.eta
        if not _is_name(headers["id"]):
            return f"its id is no text of 1 to {_MAX_NAME} characters that can be printed"
        if shadow is not None and not _is_name(shadow):
            return f"its shadow is no text of 1 to {_MAX_NAME} characters that can be printed"
        if not isinstance(headers["retries"], int) or not 0 <= headers["retries"] <= _MAX_RETRIES:
            return f"its retries are no number from 0 to {_MAX_RETRIES}"
        if not isinstance(limits, list | tuple) or len(limits) != 2 or not all(map(_is_limit, limits)):
            return "its time limits are no two numbers"
        if eta is not None and not datetime.min.year < eta.year < datetime.max.year:
            return "its ETA is no time that can be waited for"
        if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
            return "its arguments are no list and no object"
        if embed is not None and not isinstance(embed, dict):
            return "its callbacks are no object"
        try:
            self._task.__header__(*args, **kwargs)
        except TypeError as error:
            return str(error)
        return None if self._can_take(*args, *kwargs.values()) else "an argument is no text that can be stored"

    def _can_take(self, *arguments: object) -> bool:
        """Tell whether arguments are what our tasks give each other: text.

        Anything else would reach MongoDB as part of a query, where an object is an operator and where what cannot be
        encoded fails the write that many others share.
        """
        return all(isinstance(argument, str) and _is_utf8(argument) for argument in arguments)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Take note that the task failed; acks the message, unless it goes back to its queue."""
        self._error = error = _unwrap(exc_info.exception)
        finish = partial(super().on_failure, exc_info, send_failed_event, return_ok)
        if isinstance(error, InvalidEvent):
            self._bury(Reason.INVALID_EVENT, str(error), finish)
        elif isinstance(error, WorkersLost):
            self._bury(Reason.WORKER_LOST, str(error), finish)
        elif isinstance(error, TaskDefect):
            self._bury(Reason.DEFECT, str(error), finish)
        elif isinstance(error, (AttemptFailed, TaskPredicate, Terminated, MemoryError)) or not isinstance(
            error, Exception
        ):
            finish()  # it is on record, goes on elsewhere, was revoked by an operator, or is Celery's to survive
        else:
            self._bury(Reason.DEFECT, f"internal error: {type(error).__name__}", finish)

    def on_retry(self, exc_info: Any) -> None:
        """Take note that the task is retried; acks the message."""
        self._error = getattr(_unwrap(exc_info.exception), "exc", None)
        super().on_retry(exc_info)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send one of Celery's task events, in words that people can read in Flower."""
        if type == "task-started" and not self.is_told_started:
            # Of a task that is over in milliseconds it tells nothing, and costs Flower as much as the others do.
            # `DurableConsumer` sends it for those that take longer.
            return
        if type in {"task-retried", "task-failed"} and isinstance(self._error, AttemptFailed | InvalidEvent):
            fields.update(exception=str(self._error), result=str(self._error), traceback="")
        super().send_event(type, **fields)

    def tell_started(self) -> None:
        """Tell Celery's listeners that the task has started, once."""
        if not self.is_told_started:
            self.is_told_started = True
            self.send_event("task-started")

    def info(self, safe: bool = False) -> dict[str, Any]:
        """Return what `celery inspect` shows: with what stands for the arguments, which may be payload."""
        return {**super().info(safe=safe), "args": self.argsrepr, "kwargs": self.kwargsrepr}

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Take note of a time limit. A hard one comes to `on_failure` as well, and Celery would ack it here."""
        if soft:
            super().on_timeout(soft, timeout)

    def _bury(self, reason: Reason, text: str, finish: Callable[[], object]) -> None:
        _undertaker.bury(DeadLetter.make(reason, text, self.message, self.hostname), finish, self._give_back)

    def _give_back(self) -> None:
        state.task_ready(self)
        self.reject(requeue=True)


def _unwrap(error: object) -> object:
    return error.exc if isinstance(error, ExceptionWithTraceback) else error


def _is_name(value: object) -> bool:
    """Tell whether a header is a name that can stand in logs, MongoDB and Flower as it is."""
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME and value.isprintable()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_limit(value: object) -> bool:
    return value is None or isinstance(value, int | float)


class SendRequest(DurableRequest):
    """A received ``webhooks.send`` message, or one that stands for a first attempt in place."""

    def _announce_revoked(self, reason: str, terminated: bool, signum: object, expired: bool) -> None:
        """Give the delivery up before its message is acked: what was only dropped would be queued again."""
        self._already_revoked = True
        if isinstance(self.message, InPlaceMessage):
            get_services().ledger.give_up(self.message.claim)
        finish = partial(super()._announce_revoked, reason, terminated, signum, expired)
        _revoked.submit(self._give_up, finish)

    def _give_up(self, finish: Callable[[], object]) -> None:
        try:
            hold(lambda: skip_one(self.id))
        except Reject:
            self._give_back()
        except Exception as error:  # noqa: BLE001 - the ledger keeps it, and the sweep queues it again
            logger.error("revoked delivery %s is not given up: %s", self.id, trace(error))  # noqa: TRY400
            finish()
        else:
            logger.warning("delivery %s is given up, it was revoked", self.id)
            finish()


def skip_one(delivery_id: str) -> None:
    """Put on record that a delivery is given up, if it is still owed and nobody is attempting it."""
    services = get_services()
    owed = services.ledger.find(delivery_id)
    if owed is not None:
        skip([owed], services.webhooks.get(owed.webhook_id), services.ledger, services.logs)


class DeliverRequest(DurableRequest):
    """A received ``webhooks.deliver`` message whose payload is not shown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if LANE_HEADER not in self._request_dict:
            # What the log of a task reads. Constant, as describing an event costs more than most messages need.
            self._request_dict["argsrepr"] = self._request_dict["kwargsrepr"] = "…"

    def _can_take(self, *arguments: object) -> bool:
        """Take anything: an event is checked, and refused in words, by its task."""
        return True

    @property
    def argsrepr(self) -> str:
        """What Flower and `celery inspect` show as arguments."""
        if LANE_HEADER in self._request_dict:  # a producer with this package has described them
            return self._argsrepr
        return describe_input([*self._args, *self._kwargs.values()])

    @property
    def kwargsrepr(self) -> str:
        """Nothing: an event given by keyword is described with the arguments."""
        return ""
