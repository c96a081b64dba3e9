"""The worker's pool (Celery's `worker_pool`), which processes jobs in batches.

Celery's consumer, `Request` and tracer are used unchanged. Each job passes through steps. A step takes the jobs that
have gathered since its last run and returns one outcome per job:

    webhooks.deliver   accept → its first attempts become `webhooks.send` jobs in this worker
    webhooks.send      claim → attempt → record
    any other task     runs in a thread, as in Celery's thread pool

Once the outcome is known, Celery's tracer runs the task: the body returns or raises the outcome, signals and hooks
fire, retries are published. Celery gets the result (`callback`: ack, event) after the log is written.
"""

import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from bson import ObjectId
from celery.concurrency.base import BasePool, apply_target
from celery.platforms import EX_FAILURE
from celery.worker import state

from webhooks.delivery.accept import Accepted, Accepting, accept, leave_lane
from webhooks.delivery.attempt import PreparedAttempt
from webhooks.delivery.claim import claim_all, give_back, release
from webhooks.delivery.holding import carry_out
from webhooks.delivery.outcomes import Attempted, Failed, SendOutcome, ToAttempt
from webhooks.delivery.queueing import report_attempt
from webhooks.delivery.record import record
from webhooks.delivery.services import get_services
from webhooks.errors import Requeue, TooLate, trace
from webhooks.sender import Answer, OutgoingRequest
from webhooks.store.deliveries import Claim
from webhooks.worker.current_batch import new_batch
from webhooks.worker.inplace import InPlaceMessage
from webhooks.worker.job import Job

logger = logging.getLogger(__name__)

#: Maximum number of jobs in one step.
_MAX_BATCH = 256
#: For so many seconds ended attempts are gathered before they are recorded: a batch of one costs the worker and MongoDB
#: as much as several more logs do.
_GATHER_S = 0.01
#: With so many attempts in flight they are always gathered.
_MANY_IN_FLIGHT = 32
#: Interval at which events whose first attempts wait for their turn are accepted again.
_ACCEPT_AGAIN_S = 0.003
#: Threads for other tasks: late logs, and a service's own tasks.
_OTHER_THREADS = 8
#: Ends the thread that reads it from its queue.
_END = None


@dataclass(slots=True, eq=False)
class _Event:
    """A ``webhooks.deliver`` job. It ends after all attempts that it started."""

    job: Job
    accepting: Accepting
    #: Running attempts, plus one for accepting the event.
    left: int = 1
    #: Why its message is requeued; None if it is not.
    given_up: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, attempts: int) -> None:
        with self._lock:
            self.left += attempts

    def end_one(self) -> None:
        """Count the end of an attempt, or of accepting the event."""
        with self._lock:
            self.left -= 1
            is_last = not self.left
        if not is_last:
            return
        if self.given_up is not None:
            self.job.reject(self.given_up)
        self.job.finish()

    def give_up_one(self, reason: str) -> None:
        """Count the end of an attempt that could not be finished; the event's message is requeued."""
        self.given_up = reason
        self.end_one()


@dataclass(slots=True, eq=False)
class _Send:
    """A ``webhooks.send`` job."""

    job: Job
    #: The event whose first attempt this is, if no broker carried the message.
    event: _Event | None = None
    attempt: ToAttempt | None = None

    @property
    def is_given_back(self) -> bool:
        """Whether no request was made and the message is requeued."""
        outcome = self.job.outcome
        return isinstance(outcome, Failed) and isinstance(outcome.error, Requeue)


class BatchPool(BasePool):
    """Processes jobs in batches."""

    body_can_be_buffer = True
    #: Stopping waits for running jobs, which a signal handler must not do.
    signal_safe = False

    limit: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Celery's consumer; None until `DurableConsumer` sets it.
        self.consumer: Any = None
        self._events: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._sends: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[_Send | None] = queue.SimpleQueue()
        self._others = ThreadPoolExecutor(_OTHER_THREADS, "task")
        self._slots = _Slots(self.limit)
        self._closing = threading.Event()
        self._steps = [_thread(self._accept_all, "accept"), _thread(self._claim_all, "claim")]
        self._recorder = _thread(self._record_all, "record")

    # ── Celery's pool ───────────────────────────────────────────────────────────────────────────────────────────────
    def on_start(self) -> None:
        """Start the threads."""
        for requests in (state.reserved_requests, state.active_requests):
            requests.__class__ = _SharedWeakSet
        for thread in (*self._steps, self._recorder):
            thread.start()

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> None:
        """Accept a job."""
        if args[0] not in {"webhooks.deliver", "webhooks.send"}:
            self._others.submit(apply_target, target, args, kwargs, callback, accept_callback)
            return
        job = Job(target, args, cast("Any", callback), cast("Any", accept_callback))
        message = getattr(getattr(callback, "__self__", None), "message", None)
        if args[0] == "webhooks.deliver":
            self._events.put(job)
        elif isinstance(message, InPlaceMessage):
            message.put_job(job)
        else:
            self._sends.put(job)

    def drain(self) -> None:
        """Finish running jobs. The messages of the others are requeued when the connection closes."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._events.put(_END)
        self._sends.put(_END)
        for thread in self._steps:
            thread.join()
        get_services().attempt_runner.sender.close()
        self._ended.put(_END)
        self._recorder.join()
        self._others.shutdown(cancel_futures=True)

    def on_stop(self) -> None:
        """Stop. `DurableConsumer` has usually drained the pool already, while acks had a connection."""
        self.drain()

    def grow(self, n: int = 1) -> None:
        """Allow more concurrent attempts: `celery control pool_grow`, and ``--autoscale``."""
        self.limit += n
        self._slots.resize(self.limit)

    def shrink(self, n: int = 1) -> None:
        """Allow fewer concurrent attempts; running ones continue."""
        self.limit = max(1, self.limit - n)
        self._slots.resize(self.limit)

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "processes": [os.getpid()], "in-flight": self.in_flight}

    @property
    def in_flight(self) -> int:
        """Attempts that use a slot."""
        return self._slots.taken

    def find_dead_threads(self) -> list[str]:
        """Return the names of its threads that have ended though the pool runs."""
        if self._closing.is_set():
            return []
        return [one.name for one in (*self._steps, self._recorder) if one.ident is not None and not one.is_alive()]

    # ── Accept ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _accept_all(self) -> None:
        waiting: list[_Event] = []
        while True:
            batch = _take_batch(self._events, _ACCEPT_AGAIN_S if waiting else None)
            if self._closing.is_set():
                return
            for job in batch:
                job.begin()
            waiting = self._accept([*waiting, *map(self._new_event, batch)])

    def _new_event(self, job: Job) -> _Event:
        arguments = [*job.request["args"], *job.request["kwargs"].values()]
        return _Event(job, Accepting(job.task_id, arguments[0], job.request, self._node, makes_attempts=True))

    def _accept(self, events: list[_Event]) -> list[_Event]:
        """Accept events; return those whose first attempts wait for their turn."""
        services = get_services()

        def step(some: Sequence[_Event]) -> list[Accepted]:
            return accept(services, [event.accepting for event in some], self._slots)

        waiting, over = [], []
        sends: list[_Send] = []
        for event, found in zip(events, carry_out(step, events), strict=True):
            if isinstance(found, Accepted):
                sends += self._begin_in_place(event, found.attempts)
                outcome = found.outcome
            else:
                outcome = found
            if outcome is None:
                waiting.append(event)
            else:
                event.job.outcome = outcome
                over.append(event)
        self._attempt(sends)
        with new_batch() as batch:
            for event in over:
                batch.outcome = event.job.outcome
                event.job.trace()
            self._publish(batch)
        for event in over:
            event.end_one()
        return waiting

    def _begin_in_place(self, event: _Event, attempts: Sequence[ToAttempt]) -> list[_Send]:
        """Have Celery make a ``webhooks.send`` request for each first attempt, without a broker message."""
        sends = []
        event.add(len(attempts))
        for attempt in attempts:
            message = InPlaceMessage(
                attempt.delivery, attempt.claim, event.job.request, event.end_one, event.give_up_one
            )
            self.consumer.strategies["webhooks.send"](message, None, message.ack, message.reject, ())
            job = message.take_job()
            if job is None:  # revoked: see `request.SendRequest`
                self._slots.give_back(1)
                leave_lane(attempt.delivery, attempt.claim)
                continue
            job.begin()
            sends.append(_Send(job, event, attempt))
        return sends

    # ── Claim ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _claim_all(self) -> None:
        waiting: list[Job] = []
        while True:
            waiting += _take_batch(self._sends, 0 if waiting else None)
            room = self._slots.wait(len(waiting), self._closing)
            if self._closing.is_set():
                return
            self._claim(waiting[:room])
            waiting = waiting[room:]

    def _claim(self, jobs: Sequence[Job]) -> None:
        services = get_services()
        attempts = []
        for job in jobs:
            job.begin()

        def step(some: Sequence[Job]) -> list[SendOutcome | ToAttempt]:
            return claim_all(services, [self._claim_of(job) for job in some])

        for job, found in zip(jobs, carry_out(step, jobs), strict=True):
            send = _Send(job)
            if isinstance(found, ToAttempt):
                send.attempt = found
                attempts.append(send)
            else:
                self._end(send, found)
        self._attempt(attempts)

    def _claim_of(self, job: Job) -> Claim:
        (delivery_id,) = [*job.request["args"], *job.request["kwargs"].values()]
        return Claim(delivery_id, job.request.get("retries", 0), ObjectId(), self._node)

    # ── Attempt ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _attempt(self, sends: Iterable[_Send]) -> None:
        """Start the requests; `_conclude` gets their answers."""
        runner = get_services().attempt_runner
        requests: list[tuple[OutgoingRequest, Callable[[Answer], None]]] = []
        for send in sends:
            one = cast("ToAttempt", send.attempt)
            try:
                prepared = runner.prepare(one.delivery, one.webhook, one.claim, one.event, is_probe=one.is_probe)
            except Exception as error:  # noqa: BLE001 - for example a stored event that is no longer valid
                get_services().deliveries.give_up(one.claim)
                self._end(send, Failed(error))
                continue
            on_answer = partial(self._conclude, send, prepared)
            if isinstance(prepared.request, Answer):
                on_answer(prepared.request)
            else:
                requests.append((prepared.request, on_answer))
        runner.sender.submit_many(requests)

    def _conclude(self, send: _Send, prepared: PreparedAttempt, answer: Answer) -> None:
        """Evaluate an answer. Usually runs in one of the sender's threads."""
        one = cast("ToAttempt", send.attempt)
        if isinstance(answer.defect, TooLate):
            self._end(send, give_back(get_services(), one.claim, answer.defect))
            return
        try:
            log = get_services().attempt_runner.conclude(prepared, answer)
            send.job.took_s = (log.details.total_ms or 0) / 1000
            report_attempt(one.delivery.lane, log)
        except Exception as error:  # noqa: BLE001 - the task raises it
            # The claim stays. Once it has expired, the next claimant records an interrupted attempt.
            self._end(send, Failed(error))
        else:
            self._end(send, Attempted(one, log, prepared.span))

    def _end(self, send: _Send, outcome: SendOutcome) -> None:
        send.job.outcome = outcome
        self._ended.put(send)

    # ── Record ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _record_all(self) -> None:
        while True:
            batch = _take_batch(self._ended)
            if self._gathers(batch):
                time.sleep(_GATHER_S)
                batch += _take_batch(self._ended, 0, _MAX_BATCH - len(batch))
            is_last = batch[-1] is _END
            ended = batch[:-1] if is_last else batch
            if ended:
                self._record(ended)
            if is_last:
                return

    def _gathers(self, batch: Sequence[_Send | None]) -> bool:
        """Return whether to wait for more attempts to end before these are recorded."""
        if len(batch) >= _MAX_BATCH or batch[-1] is _END:
            return False
        if self.in_flight >= _MANY_IN_FLIGHT:
            return True
        # The line of an ordered webhook waits for the record, and a worker with few slots for the slot.
        waits = any(send and send.attempt and send.attempt.delivery.is_ordered for send in batch)
        return not waits and 2 * self.in_flight <= self.limit

    def _record(self, ended: Sequence[_Send]) -> None:
        services = get_services()
        with new_batch() as batch:
            for send in ended:
                batch.outcome = send.job.outcome
                send.job.trace()
            self._publish(batch)
        # Before their messages are requeued, as any worker may claim them next.
        release(services, [send.attempt.claim for send in ended if send.attempt and send.is_given_back])
        first = {send.attempt for send in ended if send.event is not None}
        forgotten = record(services, batch.attempted, [one for one in batch.attempted if one.attempt in first])
        for send in ended:
            if send.event is not None and send.attempt is not None and send.attempt.delivery.delivery_id in forgotten:
                send.event.given_up = "MongoDB may have forgotten a delivery of it"
            send.job.finish()
            if send.event is not None and send.attempt is not None:
                leave_lane(send.attempt.delivery, send.attempt.claim)
        self._slots.give_back(len(ended))

    @staticmethod
    def _publish(batch: Any) -> None:
        try:
            batch.messages.publish_all()
        except Exception as error:  # noqa: BLE001 - the ledger has their due times, and the sweep queues them
            logger.warning("retries wait for the sweep: %s", type(error).__name__)

    @property
    def _node(self) -> str | None:
        return getattr(self.consumer, "hostname", None)


class _SharedWeakSet(weakref.WeakSet[Any]):
    """A weak set that can be iterated while other threads change it, as Celery's `inspect` does."""

    def __iter__(self) -> Iterator[Any]:
        references: Any = self.data  # pyright: ignore[reportAttributeAccessIssue]
        return (request for reference in list(references) if (request := reference()) is not None)


class _Slots:
    """Limits the number of concurrent attempts."""

    def __init__(self, limit: int) -> None:
        self.taken = 0
        self.limit = limit
        self._changed = threading.Condition()

    @property
    def _free(self) -> int:
        return max(0, self.limit - self.taken)

    def resize(self, limit: int) -> None:
        with self._changed:
            self.limit = limit
            self._changed.notify_all()

    def take(self, most: int) -> int:
        """Take up to this many free slots; return the number taken."""
        with self._changed:
            taken = min(most, self._free)
            self.taken += taken
            return taken

    def give_back(self, count: int) -> None:
        with self._changed:
            self.taken -= count
            self._changed.notify_all()

    def wait(self, most: int, closing: threading.Event) -> int:
        """Wait for a free slot, then take up to this many; return the number taken, 0 when the pool closes."""
        with self._changed:
            while not (taken := min(most, self._free)):
                if closing.is_set():
                    return 0
                self._changed.wait(0.1)
            self.taken += taken
            return taken


def _take_batch(source: "queue.SimpleQueue[Any]", timeout_s: float | None = None, most: int = _MAX_BATCH) -> list[Any]:
    """Wait for one item, then take up to `most` queued items, up to `_END`; empty after the timeout."""
    batch: list[Any] = []
    try:
        batch.append(source.get(timeout=timeout_s) if timeout_s != 0 else source.get_nowait())
        while len(batch) < most and batch[-1] is not _END:
            batch.append(source.get_nowait())
    except queue.Empty:
        pass
    return batch


def _thread(run: Callable[[], object], name: str) -> threading.Thread:
    def run_or_stop() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - a defect
            # The leases go on, so this process would keep its messages for ever.
            logger.critical("the worker ends, as its pool met a defect: %s", trace(error))
            state.should_stop = EX_FAILURE

    return threading.Thread(target=run_or_stop, name=f"pool-{name}", daemon=True)
