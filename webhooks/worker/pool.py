"""The worker's pool: Celery's extension point (`worker_pool`), through which all of its work is done in batches.

Celery's consumer, its `Request` and its tracer stay as they are. A job that Celery applies goes through steps, each of
which takes what has gathered since it was last carried out and returns an outcome for each item:

    webhooks.deliver   accept → its first attempts become `webhooks.send` jobs in place
    webhooks.send      claim → attempt → record
    any other task     run in a thread, as Celery's own pool of threads does

When the outcome of a job is known, Celery's tracer runs its task: the body says the outcome in Celery's words, signals
and hooks fire, retries are published. Celery is told of its end (`callback`: ack, event) after its log is written.
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

from billiard.einfo import ExceptionInfo
from bson import ObjectId
from celery.concurrency.base import BasePool, apply_target
from celery.exceptions import Reject
from celery.worker import state

from webhooks.delivery.accept import Accepted, Accepting, accept, leave_lane
from webhooks.delivery.attempt import PreparedAttempt
from webhooks.delivery.claim import claim_all, give_back, release
from webhooks.delivery.holding import carry_out
from webhooks.delivery.outcomes import Attempted, DeliverOutcome, Failed, SendOutcome, ToAttempt
from webhooks.delivery.queueing import report_attempt
from webhooks.delivery.record import record
from webhooks.delivery.services import get_services
from webhooks.errors import TooLate, trace
from webhooks.sender import Answer, OutgoingRequest
from webhooks.store.deliveries import Claim
from webhooks.worker.batch import new_batch
from webhooks.worker.inplace import InPlaceMessage

logger = logging.getLogger(__name__)

#: Items that share a step. Under load they gather while the step before is carried out.
_MAX_BATCH = 100
#: Seconds between two looks whether first attempts that wait for their turn may be made.
_LOOK_AGAIN_S = 0.003
#: Threads for tasks that are not steps: logs that come late through the broker, and a service's own tasks.
_OTHER_THREADS = 8
#: Put into a line to end its thread.
_END = None


@dataclass(slots=True, eq=False)
class Job:
    """One application of a task, from Celery's `Request` to its end."""

    target: Callable[..., Any]
    args: Sequence[Any]
    callback: Callable[..., Any]
    accept_callback: Callable[..., Any]
    outcome: DeliverOutcome | SendOutcome | None = None
    #: Seconds that the attempt took, for Celery's task events; None: as long as the tracer says.
    took_s: float | None = None
    #: What Celery's tracer returned.
    result: Any = None

    @property
    def task_id(self) -> str:
        """Celery's: of an attempt the delivery's id, of an event its own."""
        return self.args[1]

    @property
    def request(self) -> dict[str, Any]:
        """The message's headers, with its ``args`` and ``kwargs``."""
        return self.args[2]

    def begin(self) -> None:
        """Tell Celery that work on it begins."""
        self.accept_callback(os.getpid(), time.monotonic())

    def trace(self) -> None:
        """Have Celery's tracer run the task; within a batch that knows the outcome."""
        try:
            self.result = self.target(*self.args)
        except Exception as error:  # noqa: BLE001 - the tracer lets a few pass; Celery's pools hand them on as well
            logger.error("job %s: %s", self.task_id, trace(error))  # noqa: TRY400
            self.result = 1, ExceptionInfo(), 0.0

    def reject(self, reason: str) -> None:
        """Have its message go back to its queue, whatever came of it before."""
        try:
            raise Reject(reason, requeue=True)  # noqa: TRY301 - Celery reads what is raised
        except Reject:
            self.result = 1, ExceptionInfo(), 0.0

    def finish(self) -> None:
        """Tell Celery of its end."""
        failed, value, runtime = self.result
        try:
            self.callback((failed, value, runtime if self.took_s is None else self.took_s))
        except Exception as error:  # noqa: BLE001 - such as an ack on a connection that is gone: the message comes back
            logger.warning("message %s stays unacked: %s", self.task_id, trace(error))


@dataclass(slots=True, eq=False)
class _Event:
    """A ``webhooks.deliver`` job; Celery is told of its end after all that it began has ended."""

    job: Job
    accepting: Accepting
    #: Attempts under way, and one for the accepting itself.
    left: int = 1
    #: Why its message goes back to its queue; None: it does not.
    given_up: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, attempts: int) -> None:
        with self._lock:
            self.left += attempts

    def end_one(self) -> None:
        """Note that an attempt, or the accepting, has ended."""
        with self._lock:
            self.left -= 1
            is_last = not self.left
        if not is_last:
            return
        if self.given_up is not None:
            self.job.reject(self.given_up)
        self.job.finish()

    def give_up_one(self, reason: str) -> None:
        """Note that an attempt could not be brought to its end, so that the event is to be handled again."""
        self.given_up = reason
        self.end_one()


@dataclass(slots=True, eq=False)
class _Send:
    """A ``webhooks.send`` job."""

    job: Job
    #: Where it was made in place: what it came from. None where it has a message of its own.
    event: _Event | None = None
    attempt: ToAttempt | None = None

    @property
    def is_given_back(self) -> bool:
        """Whether no request was made, and the message is to come again."""
        outcome = self.job.outcome
        return isinstance(outcome, Failed) and isinstance(outcome.error, Reject)


class BatchPool(BasePool):
    """Carries out what Celery applies, many jobs at a time."""

    body_can_be_buffer = True
    #: It waits for what it has begun, which a signal handler must not.
    signal_safe = False

    limit: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Celery's consumer; None before it is made.
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
        """Take a job."""
        message = getattr(getattr(callback, "__self__", None), "message", None)
        if args[0] == "webhooks.deliver":
            self._events.put(Job(target, args, cast("Any", callback), cast("Any", accept_callback)))
        elif args[0] != "webhooks.send":
            self._others.submit(apply_target, target, args, kwargs, callback, accept_callback)
        elif isinstance(message, InPlaceMessage):
            message.job = Job(target, args, cast("Any", callback), cast("Any", accept_callback))
        else:
            self._sends.put(Job(target, args, cast("Any", callback), cast("Any", accept_callback)))

    def drain(self) -> None:
        """End what was begun and leave the rest, whose messages go back with the connection."""
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
        """End; Celery's consumer has drained it already, while acks had a connection."""
        self.drain()

    def grow(self, n: int = 1) -> None:
        """Make room for more attempts at one time: `celery control pool_grow`, and ``--autoscale``."""
        self.limit += n
        self._slots.resize(self.limit)

    def shrink(self, n: int = 1) -> None:
        """Make room for fewer; what is under way goes on."""
        self.limit = max(1, self.limit - n)
        self._slots.resize(self.limit)

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "processes": [os.getpid()], "in-flight": self._slots.taken}

    # ── Accept ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _accept_all(self) -> None:
        waiting: list[_Event] = []
        while True:
            batch = _take_batch(self._events, _LOOK_AGAIN_S if waiting else None)
            if self._closing.is_set():
                return
            for job in batch:
                job.begin()
            waiting = self._accept([*waiting, *map(self._new_event, batch)])

    def _new_event(self, job: Job) -> _Event:
        arguments = [*job.request["args"], *job.request["kwargs"].values()]
        return _Event(job, Accepting(job.task_id, arguments[0], job.request, self._node, makes_attempts=True))

    def _accept(self, events: list[_Event]) -> list[_Event]:
        """Accept events; return those that wait for their turn."""
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
        """Have Celery make a ``webhooks.send`` request of each first attempt, without a message from the broker."""
        sends = []
        event.add(len(attempts))
        for attempt in attempts:
            message = InPlaceMessage(
                attempt.delivery, attempt.claim, event.job.request, event.end_one, event.give_up_one
            )
            self.consumer.strategies["webhooks.send"](message, None, message.ack, message.reject, ())
            if message.job is None:  # it was revoked: see `worker.SendRequest`
                self._slots.give_back(1)
                leave_lane(attempt.delivery, attempt.claim)
                continue
            message.job.begin()
            sends.append(_Send(message.job, event, attempt))
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
        """Have requests made; their answers come to `_conclude`."""
        runner = get_services().attempt_runner
        requests: list[tuple[OutgoingRequest, Callable[[Answer], None]]] = []
        for send in sends:
            one = cast("ToAttempt", send.attempt)
            try:
                prepared = runner.prepare(one.delivery, one.webhook, one.claim, one.event, is_probe=one.is_probe)
            except Exception as error:  # noqa: BLE001 - such as a body that was changed into no event
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
        """Judge an answer; called by one of the sender's threads, among others."""
        one = cast("ToAttempt", send.attempt)
        if isinstance(answer.defect, TooLate):
            self._end(send, give_back(get_services(), one.claim, answer.defect))
            return
        try:
            log = get_services().attempt_runner.conclude(prepared, answer)
            send.job.took_s = (log.details.total_ms or 0) / 1000
            report_attempt(one.delivery.lane, log)
        except Exception as error:  # noqa: BLE001 - whatever it is, the task says it in Celery's words
            # The claim stays: when it has run out, the next claimant puts an interrupted attempt on record.
            self._end(send, Failed(error))
        else:
            self._end(send, Attempted(one, log))

    def _end(self, send: _Send, outcome: SendOutcome) -> None:
        send.job.outcome = outcome
        self._ended.put(send)

    # ── Record ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _record_all(self) -> None:
        while True:
            batch = _take_batch(self._ended)
            is_last = batch[-1] is _END
            ended = batch[:-1] if is_last else batch
            if ended:
                self._record(ended)
            if is_last:
                return

    def _record(self, ended: Sequence[_Send]) -> None:
        services = get_services()
        with new_batch() as batch:
            for send in ended:
                batch.outcome = send.job.outcome
                send.job.trace()
            self._publish(batch)
        # Before their messages go back: any worker may be the next to claim.
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
        except Exception as error:  # noqa: BLE001 - the ledger says that they are due, and the sweep queues them
            logger.warning("retries wait for the sweep: %s", type(error).__name__)

    @property
    def _node(self) -> str | None:
        return getattr(self.consumer, "hostname", None)


class _SharedWeakSet(weakref.WeakSet[Any]):
    """A set that one thread can read while others change it; Celery's `inspect` reads the worker's own as they are."""

    def __iter__(self) -> Iterator[Any]:
        references: Any = self.data  # pyright: ignore[reportAttributeAccessIssue]
        return (request for reference in list(references) if (request := reference()) is not None)


class _Slots:
    """How many attempts are under way, and how many may be."""

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
        """Take slots, as many as are free; return how many."""
        with self._changed:
            taken = min(most, self._free)
            self.taken += taken
            return taken

    def give_back(self, count: int) -> None:
        """Give slots back."""
        with self._changed:
            self.taken -= count
            self._changed.notify_all()

    def wait(self, most: int, closing: threading.Event) -> int:
        """Take slots as soon as one is free; return how many. 0 when the pool closes."""
        with self._changed:
            while not (taken := min(most, self._free)):
                if closing.is_set():
                    return 0
                self._changed.wait(0.1)
            self.taken += taken
            return taken


def _take_batch(line: "queue.SimpleQueue[Any]", timeout_s: float | None = None) -> list[Any]:
    """Wait for one item, and take those that are there by then, up to `_END`; none when time is up."""
    batch: list[Any] = []
    try:
        batch.append(line.get(timeout=timeout_s) if timeout_s != 0 else line.get_nowait())
        while len(batch) < _MAX_BATCH and batch[-1] is not _END:
            batch.append(line.get_nowait())
    except queue.Empty:
        pass
    return batch


def _thread(run: Callable[[], object], name: str) -> threading.Thread:
    return threading.Thread(target=run, name=f"pool-{name}", daemon=True)
