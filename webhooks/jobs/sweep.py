"""The sweep: deliveries that are owed and overdue, but whose message is lost, are queued again; and the outbox's relay.

Owns the question which message is lost. Redis may have been flushed, put back to an old state or made to evict keys;
a backlog, however long, is no loss. What tells them apart is the order: a webhook's lane hands out attempts in the
order in which they became due, so a delivery that was due long before the oldest message in its lane is not there any
more; nor is one that is overdue while its lane is empty. A broker without lanes has that order over all. What is queued
again although its message was there is sent once all the same: the ledger lets only one of them make the attempt.

The same goes for events of the outbox: each has its lane, by company and type.

Runs as a thread in each worker; a lease lets one of them at a time do it. Started by Celery with the worker.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from celery.signals import worker_ready
from kombu.exceptions import OperationalError

from webhooks.config import Settings, get_settings
from webhooks.delivery.queueing import queue_accepted, queue_released
from webhooks.delivery.services import Services, get_services
from webhooks.delivery.stopping import stopping
from webhooks.errors import InvalidEvent, StoreUnavailable, trace
from webhooks.producer.app import app
from webhooks.rules.lanes import DELIVER_QUEUE, SEND_QUEUE, lane_of_text, lane_of_webhook
from webhooks.store.deliveries import PendingDelivery
from webhooks.store.outbox import Accepted
from webhooks.transport.channel import Channel
from webhooks.transport.lanes import SERIAL, parent_lane_of

logger = logging.getLogger(__name__)

#: Deliveries queued again in one look; the next look goes on.
_MAX_PER_SWEEP = 5_000
#: Webhooks with something overdue that one look asks about, the longest overdue first.
_MAX_LANES_PER_SWEEP = 10_000
#: Seconds between two looks into the outbox, and events queued in one.
_RELAY_PAUSE_S = 0.5
_MAX_PER_RELAY = 500
#: Added to a lease, as a job takes some time itself.
_LEASE_SLACK_S = 2.0
#: Seconds between two looks at a lease at least.
_LEASE_EVERY_S = 0.5
#: Shared events looked at for deletion in one look.
_MAX_EVENTS_PER_SWEEP = 1_000
#: How long a shared event is kept at least: its deliveries may be about to be written.
_EVENT_KEPT = timedelta(minutes=10)
#: Added to the longest time that a worker may have a message in its hands: clocks of workers differ.
_CLOCK_SLACK_S = 5.0


@worker_ready.connect
def _start(**_: object) -> None:
    for name, job, pause_s in (("sweep", sweep, get_settings().sweep_interval_s), ("relay", relay, _RELAY_PAUSE_S)):
        start_job(name, job, pause_s)


def start_job(name: str, job: Callable[[Services, Settings], int], pause_s: float) -> None:
    """Do a job again and again with a pause in between, in one worker at a time, in a thread of its own."""
    threading.Thread(target=_run, args=(name, job, pause_s), name=name, daemon=True).start()


def _run(name: str, job: Callable[[Services, Settings], int], pause_s: float) -> None:
    settings = get_settings()
    # Each look at the lease is a write: a job that is done often is not worth one each time.
    lease_every_s = max(pause_s, _LEASE_EVERY_S)
    is_ours, look_at = False, 0.0
    while not stopping.wait(pause_s):
        try:
            if time.monotonic() >= look_at:
                is_ours = False
                # A lease a little longer than the pause: the one who has it keeps it, and a dead one's ends soon.
                is_ours = get_services().leases.take_job(name, lease_every_s * 2 + _LEASE_SLACK_S)
                look_at = time.monotonic() + (lease_every_s if lease_every_s > pause_s else 0)
            if is_ours:
                job(get_services(), settings)
        except StoreUnavailable as error:
            logger.warning("the %s waits: %s", name, error)
        except OperationalError as error:
            logger.warning("the %s waits: the broker cannot be reached (%s)", name, error)
        except Exception as error:  # noqa: BLE001 - the next look may go well
            logger.error("the %s met a defect; it goes on: %s", name, trace(error))  # noqa: TRY400


def relay(services: Services, settings: Settings) -> int:
    """Queue the events that producers have put into the outbox.

    Returns:
        How many were queued.

    Raises:
        StoreUnavailable: MongoDB cannot serve us now.
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """
    present, in_hand = services.deliveries.now(), timedelta(seconds=settings.visibility_timeout_s + _CLOCK_SLACK_S)
    due = services.outbox.find_due(present, _MAX_PER_RELAY)
    waiting = _find_waiting(due, present, in_hand)
    unqueued = [event for event in due if event not in waiting]
    for event in unqueued:
        try:
            queue_accepted(event.event_id, event.body)
        except InvalidEvent as error:
            logger.error("event %s in the outbox is not sent: %s", event.event_id, error)  # noqa: TRY400
    services.outbox.note_queued(unqueued, present, in_hand)
    services.outbox.ask_again(waiting, present + in_hand)
    return len(unqueued)


def _find_waiting(due: Sequence[Accepted], present: datetime, in_hand: timedelta) -> list[Accepted]:
    """Return the events of the outbox that were queued before and may still wait in their lanes.

    Without lanes nobody can tell whose messages a queue holds, so all of them may while there are any.
    """
    queued = [(event, event.queued_at) for event in due if event.queued_at is not None]
    if not queued:
        return []
    with _connect() as connection:
        channel = connection.default_channel
        if not isinstance(channel, Channel):
            return [event for event, _ in queued] if _count_queued(connection, DELIVER_QUEUE) else []
        lanes = [lane_of_text(event.body) for event, _ in queued]
        states = channel.look_at(DELIVER_QUEUE, lanes)
        # Where order matters, all of a company's events of one type stand in this one instead.
        serial_states = channel.look_at(DELIVER_QUEUE, [parent_lane_of(lane) + SERIAL for lane in lanes])
    waiting = []
    for (event, at), state, serial in zip(queued, states, serial_states, strict=True):
        reached = present - timedelta(seconds=max(state.waited_s or 0, serial.waited_s or 0))
        if at > reached - in_hand:
            waiting.append(event)
    return waiting


def sweep(services: Services, settings: Settings) -> int:
    """Queue again what is owed and lost; forget events of which nothing is owed.

    Returns:
        How many deliveries were queued.

    Raises:
        StoreUnavailable: MongoDB cannot serve us now.
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """
    present = services.deliveries.now()
    services.deliveries.forget_events(present - _EVENT_KEPT, _MAX_EVENTS_PER_SWEEP)
    lost = _find_lost(services, present, timedelta(seconds=settings.visibility_timeout_s + _CLOCK_SLACK_S))
    webhooks = services.webhooks.get_many({delivery.webhook_id for delivery in lost})
    for delivery in lost:
        queue_released(delivery, webhooks[delivery.webhook_id])
    if lost:
        # They stand at the end of the queue now, and so they must in the ledger.
        services.deliveries.postpone([delivery.delivery_id for delivery in lost], present)
        logger.warning("queued %d deliveries again whose messages were lost", len(lost))
    return len(lost)


def _find_lost(services: Services, present: datetime, in_hand: timedelta) -> list[PendingDelivery]:
    """Return deliveries whose message is not in its queue any more.

    Args:
        services: this process's own.
        present: now, by the ledger.
        in_hand: the longest that a worker may have a message.
    """
    with _connect() as connection:
        channel = connection.default_channel
        if not isinstance(channel, Channel):
            waiting = _count_queued(connection, SEND_QUEUE)
            reached = find_reached(present, services.progress.taken_due_at, is_queue_empty=waiting == 0)
            return [] if reached is None else services.deliveries.find_overdue(reached - in_hand, _MAX_PER_SWEEP)
        lost: list[PendingDelivery] = []
        # Each lane has an order of its own, and each webhook a lane.
        oldest = services.deliveries.find_oldest_overdue(present - in_hand, _MAX_LANES_PER_SWEEP)
        lanes = [lane_of_webhook(delivery.company, delivery.webhook_id) for delivery in oldest]
        states = channel.look_at(SEND_QUEUE, lanes) if lanes else []
    for delivery, state in zip(oldest, states, strict=True):
        reached = present if state.waited_s is None else present - timedelta(seconds=state.waited_s)
        room = _MAX_PER_SWEEP - len(lost)
        if room and delivery.due_at < reached - in_hand:
            lost += services.deliveries.find_overdue(reached - in_hand, room, delivery.webhook_id)
    return lost


def find_reached(present: datetime, taken_due_at: datetime | None, *, is_queue_empty: bool) -> datetime | None:
    """Say how far the queue has been worked off: what was due before is in a worker's hands, or lost.

    Args:
        present: now.
        taken_due_at: since when the delivery was due that was taken last; None when none was taken yet.
        is_queue_empty: whether no message waits in the queue.

    Returns:
        An instant; None when it cannot be told.
    """
    if is_queue_empty:
        return present
    return None if taken_due_at is None else min(taken_due_at, present)


@contextmanager
def _connect() -> Iterator[Any]:
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, timeout=5)
        yield connection


def _count_queued(connection: Any, queue: str) -> int:
    try:
        return connection.default_channel.queue_declare(queue=queue, passive=True).message_count
    except connection.channel_errors:
        return 0  # Redis has no empty lists: such a queue is not there
