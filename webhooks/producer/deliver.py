"""What a service calls: the task ``webhooks.deliver``, and `accept` for one that can reach MongoDB.

Owns the check of an event where it is handed in. A service loads this, so it loads nothing of the worker and opens no
connection; the worker's parts are named by their paths, as Celery names its own.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from celery import Task
from celery.utils import uuid
from kombu.utils.imports import symbol_by_name

from webhooks.config import get_settings
from webhooks.errors import InvalidEvent, NotInstalled
from webhooks.models import COTEvent, describe_event, parse_event, parse_event_text
from webhooks.producer.app import app
from webhooks.producer.durable import DurableTask
from webhooks.producer.extras import require
from webhooks.producer.publishing import OutgoingMessage, acquire_producer, confirm_timeout_s, publish_many
from webhooks.rules.lanes import lane_of_event
from webhooks.transport.headers import LANE_HEADER

if TYPE_CHECKING:
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.asynchronous.database import AsyncDatabase
    from pymongo.client_session import ClientSession
    from pymongo.database import Database

#: Where clients come from whose methods have to be awaited. By name: a producer need not have them.
_ASYNC_MODULES = ("pymongo.asynchronous", "motor")


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event that a service handed in while `record_with` was in force."""

    event_id: str
    #: The event as receivers would get it.
    event: dict[str, Any]
    #: The function that was called: ``deliver``, by whichever of its methods, or ``accept``, asynchronous or not.
    function: str
    #: What was given to ``apply_async`` besides the event, such as ``countdown``.
    options: Mapping[str, Any] = field(default_factory=dict)


#: What takes events in place of the broker and MongoDB; None: nothing does.
_recorder: Callable[[RecordedEvent], object] | None = None


@contextmanager
def record_with(recorder: Callable[[RecordedEvent], object]) -> Iterator[None]:
    """Have events of all threads recorded instead of sent. For a service's tests, by way of `webhooks.testing`."""
    global _recorder  # noqa: PLW0603 - a context variable would miss the threads that a service starts
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before


class DeliverTask(DurableTask):
    """Checks an event where it is handed in, and publishes it as the JSON text that receivers will get."""

    #: In the worker: keeps payloads out of Flower and logs.
    Request = "webhooks.worker.request:DeliverRequest"
    #: A bad event is its producer's fault: a line in the log, no traceback.
    throws = (InvalidEvent,)

    def apply_async(  # pyright: ignore[reportIncompatibleMethodOverride] - the rest are options
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Queue an event; takes Celery's usual options.

        Raises:
            InvalidEvent: names every field and reason; nothing was queued.
            kombu.exceptions.OperationalError: the broker could not be reached within ``WEBHOOKS_PUBLISH_TIMEOUT_S``.
        """
        given = [*(args or ()), *(kwargs or {}).values()]
        if len(given) != 1:
            return super().apply_async(args, kwargs, **options)  # Celery says what is wrong with the arguments
        event = read_event(given[0])
        if (recorder := _recorder) is not None:
            event_id = options.pop("task_id", None) or uuid()
            recorder(_describe(event_id, event, "deliver", options))
            return self.AsyncResult(event_id)
        options.setdefault("argsrepr", _label(event))
        options.setdefault("kwargsrepr", "")
        options["headers"] = {**_headers(event), **(options.get("headers") or {})}
        options.setdefault("confirm_timeout", confirm_timeout_s())
        if options.get("producer") or options.get("connection") or app.conf.task_always_eager:
            return super().apply_async((event.to_json(),), {}, **options)
        with acquire_producer() as producer:
            return super().apply_async((event.to_json(),), {}, **{**options, "producer": producer})

    def delay_many(self, events: Iterable[Mapping[str, Any] | COTEvent]) -> list[str]:
        """Queue events in few steps: for producers with many at a time.

        Args:
            events: each as for ``delay``. All are checked before the first one is queued.

        Returns:
            The events' ids, in the same order.

        Raises:
            InvalidEvent: names the event by its place, from 0, and every field and reason; nothing was queued.
            kombu.exceptions.OperationalError: the broker could not be reached within ``WEBHOOKS_PUBLISH_TIMEOUT_S``; a
                part of them may be queued, so that queueing all of them again repeats that part under new ids.
        """
        checked = []
        for place, given in enumerate(events):
            try:
                checked.append((uuid(), read_event(given)))
            except InvalidEvent as error:
                raise InvalidEvent(f"event {place} of those given: {error}") from None
        if (recorder := _recorder) is not None:
            for event_id, event in checked:
                recorder(_describe(event_id, event, "deliver"))
        else:
            publish_many(self, [_draft(event_id, event) for event_id, event in checked])
        return [event_id for event_id, _ in checked]

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """Queue an event as soon as Django's transaction commits; at once where there is none.

        Raises:
            InvalidEvent: at once, not when the transaction commits.
            NotInstalled: there is no Django here.
        """
        self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Queue an event as soon as Django's transaction commits; takes Celery's usual options.

        Raises:
            InvalidEvent: at once, not when the transaction commits.
            NotInstalled: there is no Django here.
        """
        try:
            on_commit = import_module("django.db.transaction").on_commit
        except ModuleNotFoundError:
            raise NotInstalled(
                "deliver.delay_on_commit waits for the commit of a Django transaction, and Django is not installed "
                "here: call deliver.delay after your own commit"
            ) from None
        given = [*(args or ()), *(kwargs or {}).values()]
        if len(given) == 1:  # else Celery says at the commit what is wrong with the arguments
            args, kwargs = (read_event(given[0]).to_json(),), None
        on_commit(partial(self.apply_async, args, kwargs, **options))

    def apply(  # pyright: ignore[reportIncompatibleMethodOverride] - the rest are options
        self, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        """Deliver an event in this process, as Celery's ``task_always_eager`` has it.

        Raises:
            NotInstalled: the worker's packages are not installed here.
            StoreUnavailable: MongoDB cannot be reached; said within seconds, as this is mostly a test.
        """
        _worker_part("webhooks.worker.eager:check")()
        return super().apply(args, kwargs, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task; called as a function it needs what `apply` needs."""
        if self.request.called_directly:
            _worker_part("webhooks.worker.eager:check")()
        return super().__call__(*args, **kwargs)


def _deliver(self: Task, event: dict[str, Any] | str | COTEvent) -> str:
    """Start a delivery of the event to each webhook that asked for it; of a dict, a COTEvent, or its JSON text."""
    return _worker_part("webhooks.worker.tasks:run_deliver")(self, event)


#: The task. Typed, as a type checker would take what Celery makes of a function for that function.
deliver = cast("DeliverTask", app.task(base=DeliverTask, bind=True, name="webhooks.deliver")(_deliver))


def accept(
    event: Mapping[str, Any] | COTEvent, database: "Database[Any]", session: "ClientSession | None" = None
) -> str:
    """Write an event down in MongoDB for delivery, in the producer's own transaction if it has one.

    What ``deliver.delay`` is to the broker this is to the database: for producers that can reach it and must not lose
    an event even if the broker does. Workers pick it up within seconds.

    Args:
        event: a dict or a COTEvent.
        database: the one of WEBHOOKS_MONGODB_URL, by the producer's own client, whose write concern decides what
            survives.
        session: with a transaction begun; None for none. The event is sent if that commits.

    Returns:
        The event's id.

    Raises:
        InvalidEvent: names every field and reason; nothing was written.
        TypeError: the database or the session is that of an asynchronous client.
        pymongo.errors.PyMongoError: it could not be written.
    """
    if _is_async(database) or _is_async(session):
        raise TypeError(
            "accept writes with a synchronous client, such as pymongo.MongoClient, and this is an asynchronous one: "
            "await accept_async(event, database, session)"
        )
    event_id, document = _new_entry(event)
    if document is not None:
        database["outbox"].update_one({"_id": event_id}, document, upsert=True, session=session)
    return event_id


async def accept_async(
    event: Mapping[str, Any] | COTEvent, database: "AsyncDatabase[Any]", session: "AsyncClientSession | None" = None
) -> str:
    """Write an event down in MongoDB as `accept` does, with an asynchronous client: ``pymongo.AsyncMongoClient``.

    Raises:
        InvalidEvent: names every field and reason; nothing was written.
        TypeError: the database or the session is that of a synchronous client.
        pymongo.errors.PyMongoError: it could not be written.
    """
    if _is_sync(database) or _is_sync(session):
        raise TypeError(
            "accept_async writes with an asynchronous client, such as pymongo.AsyncMongoClient, and this is a "
            "synchronous one: accept(event, database, session), in a thread of its own where the loop must not wait"
        )
    event_id, document = _new_entry(event)
    if document is not None:
        await database["outbox"].update_one({"_id": event_id}, document, upsert=True, session=session)
    return event_id


def read_event(value: object) -> COTEvent:
    """Check what somebody handed in as an event.

    Raises:
        InvalidEvent: names every field and reason.
    """
    max_bytes = get_settings().max_event_bytes
    return parse_event_text(value, max_bytes) if isinstance(value, str) else parse_event(value, max_bytes)


def _label(event: COTEvent) -> str:
    """Return what Flower shows as arguments."""
    return f"{describe_event(event)}, company {event.company}"


def _headers(event: COTEvent) -> dict[str, str]:
    return {LANE_HEADER: lane_of_event(event.to_wire())}


def _draft(event_id: str, event: COTEvent) -> OutgoingMessage:
    return OutgoingMessage(event_id, (event.to_json(),), {}, _label(event), headers=_headers(event))


def _new_entry(value: object) -> tuple[str, dict[str, Any] | None]:
    """Make the id of an event, and what writes it into the outbox (`store.outbox`); None where it was recorded.

    It is an update, as an insert has no way to ask for MongoDB's own clock, which decides when and in which order
    events are sent: a producer's may be wrong.
    """
    event, event_id = parse_event(value, get_settings().max_event_bytes), uuid()
    if (recorder := _recorder) is not None:
        recorder(_describe(event_id, event, "accept"))
        return event_id, None
    fields = {"body": event.to_json(), "queued": 0, "line": f"{event.company}/{event.type}"}
    clock = {"accepted_at": True, "queue_at": True, "order": {"$type": "timestamp"}}
    return event_id, {"$setOnInsert": fields, "$currentDate": clock}


def _describe(event_id: str, event: COTEvent, function: str, options: Mapping[str, Any] | None = None) -> RecordedEvent:
    return RecordedEvent(event_id, json.loads(event.to_json()), function, dict(options or {}))


def _comes_from(value: object, *modules: str) -> bool:
    names = [base.__module__ for base in type(value).__mro__]
    return any(name == module or name.startswith(f"{module}.") for name in names for module in modules)


def _is_async(value: object) -> bool:
    return _comes_from(value, *_ASYNC_MODULES)


def _is_sync(value: object) -> bool:
    return _comes_from(value, "pymongo") and not _is_async(value)


@cache
def _worker_part(path: str) -> Callable[..., Any]:
    """Load a function of the worker.

    Raises:
        NotInstalled: its packages are not installed here.
    """
    require("worker", "deliver, called as a function or with task_always_eager,")
    return cast("Callable[..., Any]", symbol_by_name(path))
