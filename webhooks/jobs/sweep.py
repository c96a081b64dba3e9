"""The sweep queues deliveries whose messages were lost; the relay queues events from the outbox.

Redis may lose messages by a flush, an old backup or eviction. Lanes are first in, first out. So a message is lost if
its delivery was due long before the oldest message in its lane, or if its lane is empty. A broker without lanes has one
such order for all deliveries. A duplicate does no harm, as the ledger lets one message make the attempt. Events of the
outbox have lanes by company and type, with the same rule.

Jobs run as threads in each worker; a lease makes one worker at a time run each job.
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
from webhooks.delivery.meters import Fault, meters
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

#: Maximum number of deliveries queued, lanes examined and shared events deleted per sweep.
_MAX_PER_SWEEP = 5_000
_MAX_LANES_PER_SWEEP = 10_000
_MAX_EVENTS_PER_SWEEP = 1_000
#: Interval of the relay, and the maximum number of events per run.
_RELAY_PAUSE_S = 0.5
_MAX_PER_RELAY = 500
#: Added to a job's lease for the runtime of the job.
_LEASE_SLACK_S = 2.0
#: Minimum interval between renewals of a job's lease.
_LEASE_EVERY_S = 0.5
#: Minimum age of a deleted shared event, as its deliveries may not be written yet.
_EVENT_KEPT = timedelta(minutes=10)
#: Added to the visibility timeout, as the clocks of workers differ.
_CLOCK_SLACK_S = 5.0


@worker_ready.connect
def _start(**_: object) -> None:
    start_job("sweep", sweep, get_settings().sweep_interval_s)
    start_job("relay", relay, _RELAY_PAUSE_S)


def start_job(name: str, job: Callable[[Services, Settings], int], pause_s: float) -> None:
    """Start a thread that repeats a job, with a pause between runs, while this worker holds the job's lease."""
    threading.Thread(target=_run, args=(name, job, pause_s), name=name, daemon=True).start()


def _run(name: str, job: Callable[[Services, Settings], int], pause_s: float) -> None:
    settings = get_settings()
    # Renewing a lease is a write, so a frequent job does not renew it in each run.
    lease_every_s = max(pause_s, _LEASE_EVERY_S)
    is_ours, renew_at = False, 0.0
    while not stopping.wait(pause_s):
        try:
            if time.monotonic() >= renew_at:
                is_ours = False
                # Little longer than the interval: the holder keeps the lease, and a dead worker's lease ends soon.
                is_ours = get_services().leases.take_job(name, lease_every_s * 2 + _LEASE_SLACK_S)
                renew_at = time.monotonic() + (lease_every_s if lease_every_s > pause_s else 0)
            if is_ours:
                job(get_services(), settings)
        except StoreUnavailable as error:
            logger.warning("the %s waits: %s", name, error)
        except OperationalError as error:
            logger.warning("the %s waits: the broker cannot be reached (%s)", name, error)
        except Exception as error:  # noqa: BLE001 - the next run may succeed
            logger.error("the %s met a defect; it goes on: %s", name, trace(error))  # noqa: TRY400
            meters.count_fault(Fault.JOB_DEFECT)


def relay(services: Services, settings: Settings) -> int:
    """Queue events from the outbox; return how many.

    Raises:
        StoreUnavailable: MongoDB is unavailable.
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
    """Return the events that were queued before and may still be in their lanes.

    Without lanes the messages in a queue cannot be told apart: all events may be there unless the queue is empty.
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
        # The lane of all of a company's events of one type, if they are ordered.
        serial_states = channel.look_at(DELIVER_QUEUE, [parent_lane_of(lane) + SERIAL for lane in lanes])
    waiting = []
    for (event, at), state, serial in zip(queued, states, serial_states, strict=True):
        reached = present - timedelta(seconds=max(state.waited_s or 0, serial.waited_s or 0))
        if at > reached - in_hand:
            waiting.append(event)
    return waiting


def sweep(services: Services, settings: Settings) -> int:
    """Queue deliveries whose messages were lost; return how many. Delete shared events without pending deliveries.

    Raises:
        StoreUnavailable: MongoDB is unavailable.
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """
    present = services.deliveries.now()
    services.deliveries.forget_events(present - _EVENT_KEPT, _MAX_EVENTS_PER_SWEEP)
    lost = _find_lost(services, present, timedelta(seconds=settings.visibility_timeout_s + _CLOCK_SLACK_S))
    webhooks = services.webhooks.get_many({delivery.webhook_id for delivery in lost})
    for delivery in lost:
        queue_released(delivery, webhooks[delivery.webhook_id])
    if lost:
        # Their messages are last in their lanes now, so their due times must be the latest.
        services.deliveries.postpone([delivery.delivery_id for delivery in lost], present)
        logger.warning("queued %d deliveries again whose messages were lost", len(lost))
        meters.count_fault(Fault.MESSAGE_LOST, len(lost))
    return len(lost)


def _find_lost(services: Services, present: datetime, in_hand: timedelta) -> list[PendingDelivery]:
    """Return deliveries whose messages are no longer queued.

    Args:
        services: the services.
        present: the current time by the ledger's clock.
        in_hand: the maximum time for which a worker may hold a message.
    """
    with _connect() as connection:
        channel = connection.default_channel
        if not isinstance(channel, Channel):
            waiting = _count_queued(connection, SEND_QUEUE)
            reached = find_reached(present, services.progress.taken_due_at, is_queue_empty=waiting == 0)
            return [] if reached is None else services.deliveries.find_overdue(reached - in_hand, _MAX_PER_SWEEP)
        lost: list[PendingDelivery] = []
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
    """Return the due time up to which a queue has been consumed; None if unknown.

    Deliveries that were due earlier are held by a worker or lost.

    Args:
        present: the current time.
        taken_due_at: due time of the delivery that was taken last; None if there was none yet.
        is_queue_empty: whether the queue has no message.
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
        return 0  # an empty queue does not exist in Redis
