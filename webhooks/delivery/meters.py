"""What this process counts of its events, attempts and faults, for monitoring.

The steps count a batch at a time, in plain numbers. `metrics.families` turns them into Prometheus's format when they
are asked for.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from heapq import nlargest
from threading import Lock

from bson import ObjectId

from webhooks.models import COTWebhookLog
from webhooks.rules.lanes import lane_of_webhook
from webhooks.rules.retry import Outcome

#: Upper bounds in seconds: of attempts, up to the longest that settings make sensible; of their phases; and of waits,
#: which include retries.
ATTEMPT_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0)
PHASE_BOUNDS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0)
WAIT_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 21_600.0)

#: Phases of an attempt, by the log's fields.
PHASES = {f"{phase}_ms": phase for phase in ("lookup", "connect", "tls", "send", "wait", "read")}
#: Webhooks with counts of their own, and the seconds after which they are chosen again.
_PLACES = 20
_CHOOSE_EVERY_S = 60.0
#: Stands for no response, and for no error kind.
NONE = "none"


class Fault(StrEnum):
    """Something that went wrong on our side."""

    #: The log of an attempt could not be stored.
    LOG_UNSTORABLE = "log_unstorable"
    #: The log of an attempt was queued, as MongoDB was away.
    LOG_LATE = "log_late"
    #: The sweep queued a delivery again whose message was lost.
    MESSAGE_LOST = "message_lost"
    #: A lease was not renewed.
    LEASE_NOT_RENEWED = "lease_not_renewed"
    #: A step had to wait for MongoDB or the broker.
    SERVER_AWAY = "server_away"
    #: A message became a dead letter.
    DEAD_LETTER = "dead_letter"
    #: A periodic job met a defect.
    JOB_DEFECT = "job_defect"


class EventResult(StrEnum):
    """What became of an event in a worker."""

    #: It has deliveries.
    MATCHED = "matched"
    #: No webhook matched.
    UNMATCHED = "unmatched"
    #: It breaks the contract.
    REFUSED = "refused"


class Histogram:
    """Counts values by their size."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        #: Values up to each bound and beyond the one before; the last beyond all.
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Busiest:
    """Counts attempts per webhook: for the busiest ones each, for all others together.

    A webhook's count begins when it gets its place, and goes when it loses it. So every count only grows.
    """

    def __init__(self, places: int = _PLACES, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = places
        self._clock = clock
        self._choose_at = clock() + _CHOOSE_EVERY_S
        #: Attempts since the last choice.
        self._recent: Counter[tuple[ObjectId, ObjectId]] = Counter()
        #: Company and webhook → attempts by outcome.
        self.counts: dict[tuple[ObjectId, ObjectId], Counter[str]] = {}
        self.others: Counter[str] = Counter()

    def add(self, company: ObjectId, webhook_id: ObjectId, outcome: str) -> None:
        """Count an attempt."""
        key = company, webhook_id
        self._recent[key] += 1
        found = self.counts.get(key)
        if found is None and len(self.counts) < self._places:
            found = self.counts[key] = Counter()
        (self.others if found is None else found)[outcome] += 1

    def choose(self) -> None:
        """Give the places to the busiest of the last minute, once a minute; idle ones stay while there is room."""
        if self._clock() < self._choose_at:
            return
        self._choose_at = self._clock() + _CHOOSE_EVERY_S
        busiest = nlargest(self._places, self._recent, key=self._recent.__getitem__)
        stay = [key for key in self.counts if key not in busiest][: self._places - len(busiest)]
        self.counts = {key: self.counts.get(key, Counter()) for key in (*busiest, *stay)}
        self._recent.clear()

    def lanes(self) -> dict[str, str]:
        """Return the lane of each webhook that has a place, by the webhook's id."""
        return {str(webhook_id): lane_of_webhook(company, webhook_id) for company, webhook_id in list(self.counts)}


class Meters:
    """All counts of this process; they only grow."""

    def __init__(self) -> None:
        #: Whether anybody reads the counts of attempts; while it is False, they are not made.
        self.is_on = False
        #: Hold it while reading.
        self.lock = Lock()
        #: By outcome, class of the status, and error kind.
        self.attempts: Counter[tuple[str, str, str]] = Counter()
        self.durations = {outcome.value: Histogram(ATTEMPT_BOUNDS) for outcome in Outcome}
        self.phases = {phase: Histogram(PHASE_BOUNDS) for phase in PHASES.values()}
        #: From acceptance to the start of the first attempt, and to the end by outcome.
        self.first_waits = Histogram(WAIT_BOUNDS)
        self.lives = {outcome.value: Histogram(WAIT_BOUNDS) for outcome in Outcome}
        self.events: Counter[EventResult] = Counter()
        self.faults: Counter[Fault] = Counter()
        self.busiest = Busiest()

    def count_event(self, result: EventResult) -> None:
        """Count an event."""
        with self.lock:
            self.events[result] += 1

    def count_fault(self, fault: Fault, number: int = 1) -> None:
        """Count a fault of ours."""
        with self.lock:
            self.faults[fault] += number

    def count_attempts(self, made: Iterable[tuple[COTWebhookLog, datetime | None]], ahead_s: float | None) -> None:
        """Count attempts.

        Args:
            made: the log of each, and when its delivery was stored by MongoDB's clock; None: unknown.
            ahead_s: seconds by which MongoDB's clock is ahead of ours; None: unknown.
        """
        if not self.is_on:
            return
        with self.lock:
            for log, accepted_at in made:
                self._count(log, None if ahead_s is None else accepted_at, ahead_s or 0.0)
            self.busiest.choose()

    def _count(self, log: COTWebhookLog, accepted_at: datetime | None, ahead_s: float) -> None:
        attempt = log.details
        outcome, kind = attempt.outcome, attempt.error_kind
        self.attempts[outcome, NONE if kind else f"{log.status // 100}xx", kind or NONE] += 1
        self.busiest.add(log.company, log.subscription, outcome)
        if attempt.total_ms is None:  # interrupted: no times are known
            return
        self.durations[outcome].add(attempt.total_ms / 1000)
        for name, phase in PHASES.items():
            ms = getattr(attempt, name)
            if ms is not None:
                self.phases[phase].add(ms / 1000)
        if accepted_at is None:
            return
        if log.retry == 0 and not attempt.probe:
            self.first_waits.add(max(0.0, (attempt.started_at - accepted_at).total_seconds() + ahead_s))
        if attempt.next_at is None and not attempt.kept:
            self.lives[outcome].add(max(0.0, (log.createdAt - accepted_at).total_seconds() + ahead_s))


#: This process's.
meters = Meters()
