"""The requests of our tasks: dead-letter each message whose task fails, and keep payloads out of logs and Flower.

Celery shows arguments as the producer described them; for a producer with nothing but Celery that is the payload.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated
from celery.exceptions import InvalidTaskError, Reject, TaskPredicate
from celery.worker import state
from celery.worker.request import Request

from webhooks.delivery.attempt import describe_input
from webhooks.delivery.holding import hold
from webhooks.delivery.services import get_services
from webhooks.delivery.skip import skip
from webhooks.errors import AttemptFailed, InvalidEvent, TaskDefect, WorkersLost, trace
from webhooks.store.deadletters import DeadLetter, Reason
from webhooks.transport.headers import LANE_HEADER
from webhooks.worker.deadletter_writer import dead_letters
from webhooks.worker.inplace import InPlaceMessage

logger = logging.getLogger(__name__)

#: Characters of a task's id; AMQP has no more room for one either.
_MAX_NAME = 255
#: More than any setting allows; a number beyond MongoDB's would fail the write that many others share.
_MAX_RETRIES = 1_000_000
#: Puts on record what was revoked: the consumer's thread must not wait for MongoDB.
_revoked = ThreadPoolExecutor(1, "revoked")


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
            self._write_dead_letter(Reason.INVALID_EVENT, str(error), finish)
        elif isinstance(error, WorkersLost):
            self._write_dead_letter(Reason.WORKER_LOST, str(error), finish)
        elif isinstance(error, TaskDefect):
            self._write_dead_letter(Reason.DEFECT, str(error), finish)
        elif isinstance(error, (AttemptFailed, TaskPredicate, Terminated, MemoryError)) or not isinstance(
            error, Exception
        ):
            finish()  # it is on record, goes on elsewhere, was revoked by an operator, or is Celery's to survive
        else:
            self._write_dead_letter(Reason.DEFECT, f"internal error: {type(error).__name__}", finish)

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

    def _write_dead_letter(self, reason: Reason, text: str, finish: Callable[[], object]) -> None:
        dead_letters.write(DeadLetter.make(reason, text, self.message, self.hostname), finish, self._give_back)

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
            get_services().deliveries.give_up(self.message.claim)
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
    owed = services.deliveries.find(delivery_id)
    if owed is not None:
        skip([owed], services.webhooks.get(owed.webhook_id), services.deliveries, services.logs)


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
