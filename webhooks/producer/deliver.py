"""The functions that producers call: the task ``webhooks.deliver`` and, for those that can reach MongoDB, `accept`.

Producers load this module, so it imports nothing of the worker; the worker's functions are named by their paths.
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

#: Packages of asynchronous MongoDB clients, by name: a producer need not install them.
_ASYNC_MODULES = ("pymongo.asynchronous", "motor")


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event that a service sent within `record_with`."""

    event_id: str
    #: The request body that receivers would get.
    event: dict[str, Any]
    #: The function that was called: ``deliver`` or ``accept``.
    function: str
    #: Options of ``apply_async``, such as ``countdown``.
    options: Mapping[str, Any] = field(default_factory=dict)


#: Gets events in place of the broker and MongoDB.
_recorder: Callable[[RecordedEvent], object] | None = None


@contextmanager
def record_with(recorder: Callable[[RecordedEvent], object]) -> Iterator[None]:
    """Pass the events of all threads to ``recorder`` instead of sending them."""
    global _recorder  # noqa: PLW0603 - a context variable would miss the threads that a service starts
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before


class DeliverTask(DurableTask):
    """Checks an event in the producer, and publishes it as the JSON text that receivers get."""

    #: In the worker: keeps payloads out of Flower and logs.
    Request = "webhooks.worker.request:DeliverRequest"
    #: An invalid event is the producer's fault: one log line, no traceback.
    throws = (InvalidEvent,)

    def apply_async(  # pyright: ignore[reportIncompatibleMethodOverride] - the rest are options
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Queue an event; takes Celery's options.

        Raises:
            InvalidEvent: names each invalid field and the reason; nothing was queued.
            kombu.exceptions.OperationalError: the broker was not reached within ``WEBHOOKS_PUBLISH_TIMEOUT_S``.
        """
        given = [*(args or ()), *(kwargs or {}).values()]
        if len(given) != 1:
            return super().apply_async(args, kwargs, **options)  # Celery reports the wrong arguments
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
        """Queue many events in a few commands, after checking all of them.

        Returns:
            The events' ids, in the same order.

        Raises:
            InvalidEvent: names the event by its position, from 0, and each invalid field; nothing was queued.
            kombu.exceptions.OperationalError: the broker was not reached within ``WEBHOOKS_PUBLISH_TIMEOUT_S``; some
                events may be queued, and a second call queues them again under new ids.
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
            publish_many(
                self,
                [
                    OutgoingMessage(event_id, (event.to_json(),), {}, _label(event), headers=_headers(event))
                    for event_id, event in checked
                ],
            )
        return [event_id for event_id, _ in checked]

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """Queue an event when Django's transaction commits, or now outside of one. See `apply_async_on_commit`."""
        self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Queue an event when Django's transaction commits, or now outside of one; takes Celery's options.

        Raises:
            InvalidEvent: raised now, not at the commit.
            NotInstalled: Django is not installed.
        """
        try:
            on_commit = import_module("django.db.transaction").on_commit
        except ModuleNotFoundError:
            raise NotInstalled(
                "deliver.delay_on_commit waits for the commit of a Django transaction, and Django is not installed "
                "here: call deliver.delay after your own commit"
            ) from None
        given = [*(args or ()), *(kwargs or {}).values()]
        if len(given) == 1:  # else Celery reports the wrong arguments at the commit
            args, kwargs = (read_event(given[0]).to_json(),), None
        on_commit(partial(self.apply_async, args, kwargs, **options))

    def apply(  # pyright: ignore[reportIncompatibleMethodOverride] - the rest are options
        self, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        """Deliver an event in this process, as with Celery's ``task_always_eager``.

        Raises:
            NotInstalled: the worker's packages are not installed.
            StoreUnavailable: MongoDB cannot be reached within seconds.
        """
        _worker_part("webhooks.worker.eager:check")()
        return super().apply(args, kwargs, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task; raises as `apply` when called as a function."""
        if self.request.called_directly:
            _worker_part("webhooks.worker.eager:check")()
        return super().__call__(*args, **kwargs)


def _deliver(self: Task, event: dict[str, Any] | str | COTEvent) -> str:
    """Start a delivery of an event, as dict, COTEvent or JSON text, to each webhook that matches it."""
    return _worker_part("webhooks.worker.tasks:run_deliver")(self, event)


#: The task; without the cast a type checker would see the plain function.
deliver = cast("DeliverTask", app.task(base=DeliverTask, bind=True, name="webhooks.deliver")(_deliver))


def accept(
    event: Mapping[str, Any] | COTEvent, database: "Database[Any]", session: "ClientSession | None" = None
) -> str:
    """Write an event to the outbox in MongoDB, optionally in the producer's transaction.

    For producers that must not lose an event even if the broker does. Workers pick it up within seconds.

    Args:
        event: a dict or a COTEvent.
        database: the database of WEBHOOKS_MONGODB_URL, from the producer's own client; its write concern applies.
        session: a session with an open transaction; the event is sent if that commits. None writes directly.

    Returns:
        The event's id.

    Raises:
        InvalidEvent: names each invalid field and the reason; nothing was written.
        TypeError: the database or the session belongs to an asynchronous client.
        pymongo.errors.PyMongoError: the write failed.
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
    """Write an event to the outbox as `accept` does, with an asynchronous client: ``pymongo.AsyncMongoClient``.

    Raises:
        TypeError: the database or the session belongs to a synchronous client.
    """
    if any(_comes_from(value, "pymongo") and not _is_async(value) for value in (database, session)):
        raise TypeError(
            "accept_async writes with an asynchronous client, such as pymongo.AsyncMongoClient, and this is a "
            "synchronous one: accept(event, database, session), in a thread of its own where the loop must not wait"
        )
    event_id, document = _new_entry(event)
    if document is not None:
        await database["outbox"].update_one({"_id": event_id}, document, upsert=True, session=session)
    return event_id


def read_event(value: object) -> COTEvent:
    """Check and parse an event, as dict, COTEvent or JSON text.

    Raises:
        InvalidEvent: names each invalid field and the reason.
    """
    max_bytes = get_settings().max_event_bytes
    return parse_event_text(value, max_bytes) if isinstance(value, str) else parse_event(value, max_bytes)


def _label(event: COTEvent) -> str:
    """Return the text that Flower shows as arguments."""
    return f"{describe_event(event)}, company {event.company}"


def _headers(event: COTEvent) -> dict[str, str]:
    return {LANE_HEADER: lane_of_event(event.to_wire())}


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


@cache
def _worker_part(path: str) -> Callable[..., Any]:
    """Load a function of the worker; raises NotInstalled if its packages are missing."""
    require("worker", "deliver, called as a function or with task_always_eager,")
    return cast("Callable[..., Any]", symbol_by_name(path))
