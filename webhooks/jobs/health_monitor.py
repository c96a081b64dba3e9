"""The health monitor: pauses webhooks whose endpoints keep failing, probes them, and releases their held deliveries.

It also resumes what a dead worker left unfinished, such as an ordered webhook whose next delivery was not queued, and
notifies operators. Every change is conditional, so two workers may run the same job at once.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from bson import ObjectId
from celery.signals import worker_ready

from webhooks.config import Settings, get_settings
from webhooks.delivery.queueing import queue_next, queue_released
from webhooks.delivery.services import Services
from webhooks.jobs.sweep import start_job
from webhooks.models import COTWebhook
from webhooks.rules.health import (
    HealthPolicy,
    Slice,
    find_streak,
    is_fault_ours,
    next_rate,
    room,
    save,
    should_pause,
    should_pause_again,
)
from webhooks.rules.retry import Outcome, is_own_fault
from webhooks.store.deliveries import PendingDelivery
from webhooks.store.gates import By, Gate
from webhooks.store.logs import AttemptCount
from webhooks.store.notices import Notice

logger = logging.getLogger(__name__)

#: Intervals of the jobs; that of the health check is a part of ``pause_after_s``, within bounds.
_DRAIN_EVERY_S = 0.25
_RECOVER_EVERY_S = 1.0
_NOTIFY_EVERY_S = 1.0
_HEALTH_PART = 10
_HEALTH_EVERY_S = (1.0, 30.0)
#: Interval at which held deliveries are searched for webhooks that have no gate.
_COUNT_EVERY_S = 60.0

#: ``pause_after_s`` is divided into slices; a few more are counted, as the first failure must be that old.
_SLICES_PER_PAUSE_AFTER = 20
_SLICES = 25
#: Maximum number of attempts counted per check, for one webhook and for all.
_MAX_COUNTED = 100_000
_MAX_RECENT = 20_000

#: Maximum number of gates examined per run, and of deliveries released for one webhook.
_MAX_GATES = 10_000
_MAX_RECOVERED = 2_000
_MAX_RELEASED = 500
#: Number of last attempts by which a recovering endpoint is judged.
_JUDGED = 10
#: Interval at which a recovering endpoint's rate changes.
_STEP_S = 1.0
#: Time after which a write of a held delivery must have ended.
_HELD_WRITTEN_S = 60.0

#: Delay before operators are notified again after a failure: doubled each time, up to a limit.
_NOTIFY_AGAIN_S = 5.0
_MAX_NOTIFY_AGAIN_S = 3600.0
_MAX_DOUBLINGS = 10
_MAX_NOTICES = 20


@worker_ready.connect
def _start(**_: object) -> None:
    monitor = HealthMonitor()
    start_job("drain", monitor.drain, _DRAIN_EVERY_S)
    start_job("recovery", monitor.recover, _RECOVER_EVERY_S)
    start_job("health", monitor.check_health, find_health_pause_s(get_settings().pause_after_s))
    start_job("notices", notify, _NOTIFY_EVERY_S)


def find_health_pause_s(pause_after_s: float) -> float:
    """Return the interval of the health check, in seconds."""
    shortest, longest = _HEALTH_EVERY_S
    return min(longest, max(shortest, pause_after_s / _HEALTH_PART))


@dataclass(slots=True)
class _Drain:
    """Progress of releasing one webhook's held deliveries."""

    gate_since: datetime | None
    #: Deliveries per second.
    rate: float
    #: Deliveries that the rate allows now.
    saved: float = 1.0
    saved_at: float = 0.0
    stepped_at: float = 0.0
    #: Attempts since the last change of the rate.
    succeeded: int = 0
    failed: int = 0
    #: Whether each of the last attempts failed.
    last: deque[bool] = field(default_factory=lambda: deque(maxlen=_JUDGED))
    #: Released deliveries that have not ended: id → number of the attempt, time of the release.
    out: dict[str, tuple[int, float]] = field(default_factory=dict)


class HealthMonitor:
    """The jobs of one process. It keeps only the progress of recoveries; a new one starts at the gate's stored rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._drains: dict[ObjectId, _Drain] = {}
        self._counted_at = float("-inf")
        self._recovered_to: ObjectId | None = None
        self._suspected_at = float("-inf")

    # ── Health ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_health(self, services: Services, settings: Settings) -> int:
        """Pause the webhooks whose endpoints keep failing; return how many.

        Raises:
            StoreUnavailable: MongoDB is unavailable.
        """
        present = services.deliveries.now()
        # A little more than since the last check; `_find_reason` counts over all of ``pause_after_s``.
        since = present - timedelta(seconds=2 * find_health_pause_s(settings.pause_after_s) + 1)
        recent = services.logs.find_webhooks(Outcome.FAILED, since, _MAX_RECENT)
        failing = {
            webhook_id: kinds
            for webhook_id, kinds in recent.items()
            if not all(kind is not None and is_own_fault(kind) for kind in kinds)
        }
        gates = services.gates.get_many(failing)
        failing = {webhook_id: kinds for webhook_id, kinds in failing.items() if gates[webhook_id].is_open}
        reasons = {
            webhook_id: reason
            for webhook_id in failing
            if (reason := self._find_reason(services, settings, webhook_id, present)) is not None
        }
        if not reasons:
            return 0
        well = services.logs.find_webhooks(Outcome.SUCCESS, since, _MAX_RECENT)
        # An endpoint that responds at all is reachable, whatever the response.
        unreached = {webhook_id for webhook_id, kinds in failing.items() if None not in kinds} - set(well)
        if is_fault_ours(len(unreached), len(set(failing) | set(well))):
            self._suspect_own_network(len(unreached), settings)
            reasons = {webhook_id: reason for webhook_id, reason in reasons.items() if webhook_id not in unreached}
        paused = [
            webhook_id
            for webhook_id, reason in reasons.items()
            if services.gates.pause(webhook_id, By.HEALTH, reason, settings.probe_interval_s)
        ]
        return len(paused)

    def _find_reason(
        self, services: Services, settings: Settings, webhook_id: ObjectId, present: datetime
    ) -> str | None:
        """Return why a webhook must be paused; None if it must not."""
        slice_s = settings.pause_after_s / _SLICES_PER_PAUSE_AFTER
        counts = services.logs.count_attempts(webhook_id, present, slice_s, _SLICES, _MAX_COUNTED)
        theirs = [one for one in counts if one.error_kind is None or not is_own_fault(one.error_kind)]
        streak = find_streak([_make_slice(n, theirs, present) for n in range(_SLICES)])
        failing_for_s = streak.failing_for_s
        if sum(one.count for one in counts) == _MAX_COUNTED and streak.total == sum(one.count for one in theirs):
            failing_for_s = settings.pause_after_s  # the streak has all attempts that could be counted
        if not should_pause(streak.failed, streak.total, failing_for_s, _policy(settings)):
            return None
        last = next(one for one in theirs if one.outcome == Outcome.FAILED)
        return (
            f"{streak.failed} of {streak.total} attempts failed in {_in_words(failing_for_s)}, "
            f"last: {last.error_kind or last.status}"
        )

    def _suspect_own_network(self, unreached: int, settings: Settings) -> None:
        if self._clock() - self._suspected_at < settings.pause_after_s:
            return
        self._suspected_at = self._clock()
        logger.error(
            "%d endpoints, most of all, are out of reach at one time: that looks like our own network, none is paused",
            unreached,
        )

    # ── Recovery ────────────────────────────────────────────────────────────────────────────────────────────────────

    def drain(self, services: Services, settings: Settings) -> int:
        """Release held deliveries of recovering webhooks, each at its rate; return how many.

        Raises:
            StoreUnavailable: MongoDB is unavailable.
            kombu.exceptions.OperationalError: the broker cannot be reached; the sweep queues what was released.
        """
        gates = services.gates.find_recovering(_MAX_GATES)
        self._drains = {gate.webhook_id: self._resume(gate) for gate in gates}
        present = services.deliveries.now()
        webhooks = services.webhooks.get_many([gate.webhook_id for gate in gates])
        done = 0
        for gate in gates:
            webhook = webhooks[gate.webhook_id]
            if webhook is not None and webhook.ordered:
                services.gates.open(gate.webhook_id)  # one at a time is slow enough; `recover` releases the first
            elif not gate.is_held_back(present):
                done += self._drain(services, settings, gate, webhook, present)
        return done

    def _resume(self, gate: Gate) -> _Drain:
        known = self._drains.get(gate.webhook_id)
        if known is not None and known.gate_since == gate.since:
            return known
        present = self._clock()
        return _Drain(gate.since, gate.rate, saved_at=present, stepped_at=present)

    def _drain(
        self, services: Services, settings: Settings, gate: Gate, webhook: COTWebhook | None, present: datetime
    ) -> int:
        drain, clock = self._drains[gate.webhook_id], self._clock()
        self._count_ended(services, settings, drain)
        if should_pause_again(sum(drain.last), len(drain.last), _policy(settings)):
            reason = f"{sum(drain.last)} of its last {len(drain.last)} attempts failed while it recovered"
            services.gates.pause(gate.webhook_id, By.HEALTH, reason, settings.probe_interval_s)
            return 0
        if clock - drain.stepped_at >= _STEP_S:
            rate = next_rate(drain.rate, drain.succeeded, drain.failed)
            if rate != drain.rate:
                services.gates.set_rate(gate, rate)
            drain.rate, drain.succeeded, drain.failed, drain.stepped_at = rate, 0, 0, clock
        drain.saved = save(drain.saved, drain.rate, clock - drain.saved_at)
        drain.saved_at = clock
        count = min(room(drain.saved, drain.rate, len(drain.out)), _MAX_RELEASED)
        if count == 0:
            return 0
        found = services.held.find_held(gate.webhook_id, count)
        if not found:
            if not drain.out:
                services.gates.open(gate.webhook_id)
            return 0
        drain.saved -= len(found)
        drain.out.update({one.delivery_id: (one.retry, clock) for one in found})
        _release(services, found, webhook, present)
        return len(found)

    def _count_ended(self, services: Services, settings: Settings, drain: _Drain) -> None:
        """Count the results of released deliveries from their logs."""
        if not drain.out:
            return
        for end in services.logs.find_ends(list(drain.out)):
            retry, _ = drain.out.get(end.delivery_id, (None, 0.0))
            # Skip earlier attempts, and probes: they have the number of the next attempt.
            if retry is None or end.retry < retry or end.is_probe:
                continue
            del drain.out[end.delivery_id]
            if end.error_kind is not None and is_own_fault(end.error_kind):
                continue
            has_failed = end.outcome != Outcome.SUCCESS
            drain.failed, drain.succeeded = drain.failed + has_failed, drain.succeeded + (not has_failed)
            drain.last.append(has_failed)
        # The messages of the others are lost; the sweep queues them.
        lost_before = self._clock() - settings.visibility_timeout_s
        drain.out = {one: (retry, at) for one, (retry, at) in drain.out.items() if at > lost_before}

    # ── Probes and unfinished work ──────────────────────────────────────────────────────────────────────────────────

    def recover(self, services: Services, settings: Settings) -> int:
        """Probe paused endpoints, and release what is held behind open gates; return how many deliveries.

        Raises:
            StoreUnavailable: MongoDB is unavailable.
            kombu.exceptions.OperationalError: the broker cannot be reached; the sweep queues what was released.
        """
        for deactivated in services.webhooks.list_deactivated(_MAX_NOTICES):
            services.gates.deactivate(deactivated.webhook_id, deactivated.notice_id, deactivated.reason)
            services.webhooks.note_deactivation_told(deactivated)
        if self._clock() - self._counted_at >= _COUNT_EVERY_S:
            # For example, a gate was deleted by hand.
            self._counted_at = self._clock()
            services.gates.note_held(services.held.find_webhooks())
        present = services.deliveries.now()
        probes = sum(
            self._probe(services, settings, gate, present) for gate in services.gates.find_due(present, _MAX_GATES)
        )
        return probes + self._move_on(services, present)

    def _probe(self, services: Services, settings: Settings, gate: Gate, present: datetime) -> bool:
        """Release the oldest held delivery as a probe, unless a probe is running."""
        if gate.is_held_back(present):
            return False
        webhook_id = gate.webhook_id
        under_way = services.held.find_probe(webhook_id)
        if under_way is None:
            found = next(iter(services.held.find_held(webhook_id, 1)), None)
        else:
            found, claimed_until = under_way
            if claimed_until is not None and claimed_until > present:
                return False
            # Otherwise its worker died, or its message is lost.
        # The time of the next probe is written first, so a failure from here on cannot cause a second probe.
        if found is None or not services.gates.take_probe(gate, settings.probe_interval_s):
            return False
        if under_way is None:
            services.held.release([found], present, as_probe=True)
        queue_released(found, services.webhooks.get(webhook_id))
        return True

    def _move_on(self, services: Services, present: datetime) -> int:
        """Release deliveries that are held although their gate is open, of ordered webhooks only the next one."""
        gates = services.gates.find_held(_MAX_RECOVERED, self._recovered_to)
        # The next run continues after the last gate, so that every webhook has its turn.
        self._recovered_to = gates[-1].webhook_id if len(gates) == _MAX_RECOVERED else None
        webhooks = services.webhooks.get_many([gate.webhook_id for gate in gates])

        def is_ordered(gate: Gate) -> bool:
            webhook = webhooks[gate.webhook_id]
            return webhook is not None and webhook.ordered

        moving = services.held.find_outstanding(gate.webhook_id for gate in gates if is_ordered(gate))
        done = 0
        for gate in gates:
            webhook = webhooks[gate.webhook_id]
            if is_ordered(gate):
                if gate.webhook_id in moving or queue_next(services, webhook):
                    done += gate.webhook_id not in moving
                    continue
                found = services.held.find_held(gate.webhook_id, 1)  # another worker may have released the head
            else:
                found = services.held.find_held(gate.webhook_id, _MAX_RELEASED)
                _release(services, found, webhook, present)
                done += len(found)
            if not found:
                services.gates.note_none_held(gate, _HELD_WRITTEN_S)
        return done


# ── Notices ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def notify(services: Services, settings: Settings) -> int:
    """Send notices to operators: to the log, and to their URL if one is set; return how many.

    Raises:
        StoreUnavailable: MongoDB is unavailable; a notice may be sent again.
    """
    notices = services.notices.list_untold(services.deliveries.now(), _MAX_NOTICES)
    webhooks = services.webhooks.get_many([notice.webhook_id for notice in notices])
    done = 0
    for notice in notices:
        webhook = webhooks[notice.webhook_id]
        pause_s = min(_MAX_NOTIFY_AGAIN_S, _NOTIFY_AGAIN_S * 2 ** min(notice.tries, _MAX_DOUBLINGS))
        # Taken before it is sent, so that no other worker sends it meanwhile.
        if not services.notices.take(notice, pause_s + settings.total_timeout_s):
            continue
        if notice.tries == 0:
            label = str(notice.webhook_id) if webhook is None else f"{webhook.label} ({webhook.origin})"
            logger.warning("webhook %s of %s %s: %s", notice.webhook_id, label, notice.type.value, notice.reason)
        fault = None
        if services.operators is not None:
            fault = services.operators.tell(notice.notice_id, make_message(notice, webhook))
        if fault is None:
            services.notices.note_told(notice)
            done += 1
        else:
            logger.warning("operators cannot be notified, next try in about %.0f s: %s", pause_s, fault)
    return done


def make_message(notice: Notice, webhook: COTWebhook | None) -> dict[str, object]:
    """Return the body of the request to the operators' URL."""
    return {
        "type": f"webhook.{notice.type.value}",
        "timestamp": notice.at,
        "data": {
            "webhook": str(notice.webhook_id),
            "code": None if webhook is None else webhook.code,
            "company": None if webhook is None else str(webhook.company),
            "reason": notice.reason,
            "origin": None if webhook is None else webhook.origin,
        },
    }


def _release(services: Services, found: list[PendingDelivery], webhook: COTWebhook | None, present: datetime) -> None:
    if found:
        services.held.release(found, present)
    for one in found:
        queue_released(one, webhook)


def _make_slice(number: int, counts: Iterable[AttemptCount], present: datetime) -> Slice:
    mine = [one for one in counts if one.slice == number]
    failed = [one for one in mine if one.outcome == Outcome.FAILED]
    oldest_at = min((one.oldest_at for one in failed), default=None)
    return Slice(
        succeeded=sum(one.count for one in mine if one.outcome == Outcome.SUCCESS),
        failed=sum(one.count for one in failed),
        oldest_failed_s=None if oldest_at is None else (present - oldest_at).total_seconds(),
    )


def _policy(settings: Settings) -> HealthPolicy:
    return HealthPolicy(settings.pause_after_s, settings.pause_share, settings.pause_min_attempts)


def _in_words(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
