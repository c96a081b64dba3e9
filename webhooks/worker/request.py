"""Request classes: dead-letter each message whose task fails, and keep payloads out of logs and Flower.

Celery shows the arguments as the producer described them. A producer without this package describes the payload.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated
from celery.exceptions import InvalidTaskError, TaskPredicate
from celery.worker import state
from celery.worker.request import Request

from webhooks.delivery.attempt import describe_input
from webhooks.delivery.holding import hold
from webhooks.delivery.services import get_services
from webhooks.delivery.skip import skip
from webhooks.errors import AttemptFailed, InvalidEvent, Requeue, TaskDefect, WorkersLost, trace
from webhooks.store.deadletters import DeadLetter, Reason
from webhooks.transport.headers import LANE_HEADER
from webhooks.worker.deadletter_writer import dead_letters
from webhooks.worker.inplace import InPlaceMessage

logger = logging.getLogger(__name__)

#: Maximum length of a task's id, as in AMQP.
_MAX_NAME = 255
#: More than any setting allows. A number beyond MongoDB's range would fail the write of a whole batch.
_MAX_RETRIES = 1_000_000
#: Records revoked deliveries, as the consumer's thread must not wait for MongoDB.
_revoked = ThreadPoolExecutor(1, "revoked")


class DurableRequest(Request):
    """A message of one of our tasks. If the task fails, it becomes a dead letter; Celery would drop it."""

    #: The exception that the task raised, if any.
    _error: object = None
    _is_started_sent = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._request_dict.get("retries") is None:  # clients in other languages send null
            self._request_dict["retries"] = 0
        fault = None if isinstance(self.message, InPlaceMessage) else self._find_fault()
        if fault:
            raise InvalidTaskError(fault)
        # So that Celery's tracer does not decode the body again.
        self._body, self._content_type, self._content_encoding = self._decoded_body, None, None

    @property
    def _decoded_body(self) -> Any:
        # Celery's `_payload` adds a lock that all requests share, which costs as much as the rest of this class.
        return self._Request__payload  # pyright: ignore[reportAttributeAccessIssue]

    def _find_fault(self) -> str | None:
        """Return what is wrong with headers or arguments, if anything.

        Celery finds such faults only in the pool, where some errors count as success and others leave the message
        unacked forever.
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
        """Return whether all arguments are text that MongoDB can store.

        They become part of queries: there an object would be an operator, and text that cannot be encoded would fail
        the write of a whole batch.
        """
        return all(isinstance(argument, str) and _is_utf8(argument) for argument in arguments)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Handle the task's failure; acks the message, unless it is requeued."""
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
            finish()  # recorded, retried, revoked by an operator, or handled by Celery
        else:
            self._write_dead_letter(Reason.DEFECT, f"internal error: {type(error).__name__}", finish)

    def on_retry(self, exc_info: Any) -> None:
        """Handle the task's retry; acks the message."""
        self._error = getattr(_unwrap(exc_info.exception), "exc", None)
        super().on_retry(exc_info)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send one of Celery's task events, with texts that are readable in Flower."""
        if type == "task-started" and not self._is_started_sent:
            # `DurableConsumer` sends it, only for tasks that take long: each event costs Flower the same.
            return
        if type in {"task-retried", "task-failed"} and isinstance(self._error, AttemptFailed | InvalidEvent):
            fields.update(exception=str(self._error), result=str(self._error), traceback="")
        super().send_event(type, **fields)

    def send_started(self) -> None:
        """Send ``task-started``, once."""
        if not self._is_started_sent:
            self._is_started_sent = True
            self.send_event("task-started")

    def info(self, safe: bool = False) -> dict[str, Any]:
        """Return what `celery inspect` shows: the description of the arguments, which may be payload."""
        return {**super().info(safe=safe), "args": self.argsrepr, "kwargs": self.kwargsrepr}

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Handle a soft time limit. A hard one also reaches `on_failure`; Celery would ack the message here."""
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
    """Return whether a header can be shown unescaped in logs, MongoDB and Flower."""
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
    """A ``webhooks.send`` message, from the broker or an `InPlaceMessage`."""

    def _announce_revoked(self, reason: str, terminated: bool, signum: object, expired: bool) -> None:
        """Give the delivery up before its message is acked; otherwise the sweep would queue it again."""
        self._already_revoked = True
        if isinstance(self.message, InPlaceMessage):
            get_services().deliveries.give_up(self.message.claim)
        finish = partial(super()._announce_revoked, reason, terminated, signum, expired)
        _revoked.submit(self._give_up, finish)

    def _give_up(self, finish: Callable[[], object]) -> None:
        try:
            hold(lambda: skip_one(self.id))
        except Requeue:
            self._give_back()
        except Exception as error:  # noqa: BLE001 - it stays in the ledger, and the sweep queues it again
            logger.error("revoked delivery %s is not given up: %s", self.id, trace(error))  # noqa: TRY400
            finish()
        else:
            logger.warning("delivery %s is given up, it was revoked", self.id)
            finish()


def skip_one(delivery_id: str) -> None:
    """Record that a delivery is given up, if it is pending and no worker is attempting it."""
    services = get_services()
    pending = services.deliveries.find(delivery_id)
    if pending is not None:
        skip([pending], services.webhooks.get(pending.webhook_id), services.deliveries, services.logs)


class DeliverRequest(DurableRequest):
    """A ``webhooks.deliver`` message whose payload is not shown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if LANE_HEADER not in self._request_dict:
            # Celery logs these. Constant, as describing each event would cost too much.
            self._request_dict["argsrepr"] = self._request_dict["kwargsrepr"] = "…"

    def _can_take(self, *arguments: object) -> bool:
        """Accept anything: the task validates the event and names what is wrong."""
        return True

    @property
    def argsrepr(self) -> str:
        """The description of the arguments that Flower and `celery inspect` show."""
        if LANE_HEADER in self._request_dict:  # from a producer with this package
            return self._argsrepr
        return describe_input([*self._args, *self._kwargs.values()])

    @property
    def kwargsrepr(self) -> str:
        """Empty: `argsrepr` describes keyword arguments as well."""
        return ""
