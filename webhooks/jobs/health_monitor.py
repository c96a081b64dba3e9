"""The steward: pauses webhooks whose endpoints fail for long, tries those, and lets out what was kept for them.

Owns when that is done; `health` decides from what is counted here, `gates` and `kept` hold what is decided. It also
mends what a worker that died left half done: a line that stands still, a delivery that is kept although its gate is
open. And it tells operators of what happened. All of it may be done twice, or by two at a time: each change is
conditional.

Runs as threads in each worker; leases let one of them at a time do it. Started by Celery with the worker.
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

#: Seconds between two looks at what is let out, at lines and probes, and at notices.
_DRAIN_EVERY_S = 0.25
_TEND_EVERY_S = 1.0
_TELL_EVERY_S = 1.0
#: Seconds between two looks at health: a part of the time that counts as long, within bounds.
_HEALTH_PART = 10
_HEALTH_EVERY_S = (1.0, 30.0)
#: Seconds between two looks at all that is kept, for what no gate knows of.
_COUNT_EVERY_S = 60.0

#: Slices of the time that counts as long, and how many are looked at: a little more than it, as the first failure must
#: be as old as that.
_SLICES_OF_LONG = 20
_SLICES = 25
#: Attempts of one webhook, and of all, that are counted in one look.
_MAX_COUNTED = 100_000
_MAX_RECENT = 20_000

#: Gates looked at, and deliveries let out for one webhook, in one look.
_MAX_GATES = 10_000
_MAX_TENDED = 2_000
_MAX_RELEASED = 500
#: Attempts of a recovering endpoint that count when it is judged.
_JUDGED = 10
#: Seconds between two steps of its rate.
_STEP_S = 1.0
#: Seconds after which nobody can still be writing what is kept.
_KEPT_FOR_SURE_S = 60.0

#: Seconds until operators are told again when that failed: doubled each time, up to a limit.
_TELL_AGAIN_S = 5.0
_MAX_TELL_AGAIN_S = 3600.0
_MAX_DOUBLINGS = 10
_MAX_TOLD = 20


@worker_ready.connect
def _start(**_: object) -> None:
    settings = get_settings()
    steward = HealthMonitor()
    start_job("drain", steward.drain, _DRAIN_EVERY_S)
    start_job("tend", steward.tend, _TEND_EVERY_S)
    start_job("health", steward.look_at_health, find_health_pause_s(settings.pause_after_s))
    start_job("notices", tell, _TELL_EVERY_S)


def find_health_pause_s(pause_after_s: float) -> float:
    """Return the seconds between two looks at the endpoints' health."""
    shortest, longest = _HEALTH_EVERY_S
    return min(longest, max(shortest, pause_after_s / _HEALTH_PART))


@dataclass(slots=True)
class _Drain:
    """How far one webhook's kept deliveries are let out."""

    gate_since: datetime | None
    rate: float
    saved: float = 1.0
    looked_at: float = 0.0
    stepped_at: float = 0.0
    #: Since the last step of the rate.
    succeeded: int = 0
    failed: int = 0
    #: Whether each of the last attempts failed.
    last: deque[bool] = field(default_factory=lambda: deque(maxlen=_JUDGED))
    #: What was let out and has not ended: the number of its attempt, and when that was.
    out: dict[str, tuple[int, float]] = field(default_factory=dict)


class HealthMonitor:
    """One process's. What it remembers is only how recoveries go; another one begins at the rate that the gate has."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._drains: dict[ObjectId, _Drain] = {}
        self._counted_at = float("-inf")
        self._tended_to: ObjectId | None = None
        self._blamed_us_at = float("-inf")

    # ── Health ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def look_at_health(self, services: Services, settings: Settings) -> int:
        """Pause the webhooks whose endpoints have failed for long.

        Returns:
            How many were paused.

        Raises:
            StoreUnavailable: MongoDB cannot serve us now.
        """
        present = services.deliveries.now()
        # A little more than since the last look. All of the time that counts as long is looked at where one failed.
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
        # Who answers at all is reached, whatever the answer.
        unreached = {webhook_id for webhook_id, kinds in failing.items() if None not in kinds} - set(well)
        if is_fault_ours(len(unreached), len(set(failing) | set(well))):
            self._blame_us(len(unreached), settings)
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
        """Say why a webhook is to be paused; None when it is not."""
        slice_s = settings.pause_after_s / _SLICES_OF_LONG
        counts = services.logs.count_attempts(webhook_id, present, slice_s, _SLICES, _MAX_COUNTED)
        theirs = [one for one in counts if one.error_kind is None or not is_own_fault(one.error_kind)]
        streak = find_streak([_make_slice(n, theirs, present) for n in range(_SLICES)])
        failing_for_s = streak.failing_for_s
        if sum(one.count for one in counts) == _MAX_COUNTED and streak.total == sum(one.count for one in theirs):
            failing_for_s = settings.pause_after_s  # more than can be counted, and all of it in the streak
        if not should_pause(streak.failed, streak.total, failing_for_s, _policy(settings)):
            return None
        last = next(one for one in theirs if one.outcome == Outcome.FAILED)
        return (
            f"{streak.failed} of {streak.total} attempts failed in {_in_words(failing_for_s)}, "
            f"last: {last.error_kind or last.status}"
        )

    def _blame_us(self, unreached: int, settings: Settings) -> None:
        if self._clock() - self._blamed_us_at < settings.pause_after_s:
            return
        self._blamed_us_at = self._clock()
        logger.error(
            "%d endpoints, most of all, are out of reach at one time: that looks like our own network, none is paused",
            unreached,
        )

    # ── Recovery ────────────────────────────────────────────────────────────────────────────────────────────────────

    def drain(self, services: Services, settings: Settings) -> int:
        """Let out what was kept for webhooks that recover, each at its rate.

        Returns:
            How many deliveries were let out.

        Raises:
            StoreUnavailable: MongoDB cannot serve us now.
            kombu.exceptions.OperationalError: the broker cannot be reached; the sweep finds what was let out.
        """
        gates = services.gates.find_recovering(_MAX_GATES)
        self._drains = {gate.webhook_id: self._resume(gate) for gate in gates}
        present = services.deliveries.now()
        webhooks = services.webhooks.get_many([gate.webhook_id for gate in gates])
        done = 0
        for gate in gates:
            webhook = webhooks[gate.webhook_id]
            if webhook is not None and webhook.ordered:
                services.gates.open(gate.webhook_id)  # one at a time is slow enough; `tend` lets it out
            elif not gate.is_held_back(present):
                done += self._drain(services, settings, gate, webhook, present)
        return done

    def _resume(self, gate: Gate) -> _Drain:
        known = self._drains.get(gate.webhook_id)
        if known is not None and known.gate_since == gate.since:
            return known
        present = self._clock()
        return _Drain(gate.since, gate.rate, looked_at=present, stepped_at=present)

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
        drain.saved = save(drain.saved, drain.rate, clock - drain.looked_at)
        drain.looked_at = clock
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
        """Note what became of the deliveries that were let out: by their logs, whatever the workers' clocks say."""
        if not drain.out:
            return
        for end in services.logs.find_ends(list(drain.out)):
            retry, _ = drain.out.get(end.delivery_id, (None, 0.0))
            # Their earlier attempts are on record, too, and probes have the number that comes next.
            if retry is None or end.retry < retry or end.is_probe:
                continue
            del drain.out[end.delivery_id]
            if end.error_kind is not None and is_own_fault(end.error_kind):
                continue
            has_failed = end.outcome != Outcome.SUCCESS
            drain.failed, drain.succeeded = drain.failed + has_failed, drain.succeeded + (not has_failed)
            drain.last.append(has_failed)
        # Their messages are lost: the sweep's.
        lost_before = self._clock() - settings.visibility_timeout_s
        drain.out = {one: (retry, at) for one, (retry, at) in drain.out.items() if at > lost_before}

    # ── Probes, lines, and what was left half done ──────────────────────────────────────────────────────────────────

    def tend(self, services: Services, settings: Settings) -> int:
        """Try paused endpoints, move lines on, let out what is kept for nothing.

        Returns:
            How many deliveries were let out.

        Raises:
            StoreUnavailable: MongoDB cannot serve us now.
            kombu.exceptions.OperationalError: the broker cannot be reached; the sweep finds what was let out.
        """
        for deactivated in services.webhooks.list_deactivated(_MAX_TOLD):
            services.gates.deactivate(deactivated.webhook_id, deactivated.notice_id, deactivated.reason)
            services.webhooks.note_deactivation_told(deactivated)
        if self._clock() - self._counted_at >= _COUNT_EVERY_S:
            # Of a gate that somebody deleted, say.
            self._counted_at = self._clock()
            services.gates.note_held(services.held.find_webhooks())
        present = services.deliveries.now()
        probes = sum(
            self._probe(services, settings, gate, present) for gate in services.gates.find_due(present, _MAX_GATES)
        )
        return probes + self._move_on(services, present)

    def _probe(self, services: Services, settings: Settings, gate: Gate, present: datetime) -> bool:
        """Let out the oldest delivery to try a paused endpoint, unless one is being tried."""
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
            # Its worker died, or its message is lost.
        # The next time first: nothing that happens from here on makes for more than one probe at a time.
        if found is None or not services.gates.take_probe(gate, settings.probe_interval_s):
            return False
        if under_way is None:
            services.held.release([found], present, as_probe=True)
        queue_released(found, services.webhooks.get(webhook_id))
        return True

    def _move_on(self, services: Services, present: datetime) -> int:
        """Let out what is kept although its gate is open: lines that stand still, and what nobody wanted kept."""
        gates = services.gates.find_held(_MAX_TENDED, self._tended_to)
        # The next look goes on where this one ends, so that any number of lines has its turn.
        self._tended_to = gates[-1].webhook_id if len(gates) == _MAX_TENDED else None
        webhooks = services.webhooks.get_many([gate.webhook_id for gate in gates])

        def is_line(gate: Gate) -> bool:
            webhook = webhooks[gate.webhook_id]
            return webhook is not None and webhook.ordered

        moving = services.held.find_outstanding(gate.webhook_id for gate in gates if is_line(gate))
        done = 0
        for gate in gates:
            webhook = webhooks[gate.webhook_id]
            if is_line(gate):
                if gate.webhook_id in moving or queue_next(services, webhook):
                    done += gate.webhook_id not in moving
                    continue
                found = services.held.find_held(gate.webhook_id, 1)  # somebody was faster, maybe
            else:
                found = services.held.find_held(gate.webhook_id, _MAX_RELEASED)
                _release(services, found, webhook, present)
                done += len(found)
            if not found:
                services.gates.note_none_held(gate, _KEPT_FOR_SURE_S)
        return done


# ── Notices ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def tell(services: Services, settings: Settings) -> int:
    """Tell operators of what happened to webhooks: in the log, and at their URL if they have set one.

    Returns:
        How many notices were told.

    Raises:
        StoreUnavailable: MongoDB cannot serve us now; a notice may be told once more.
    """
    notices = services.notices.list_untold(services.deliveries.now(), _MAX_TOLD)
    webhooks = services.webhooks.get_many([notice.webhook_id for notice in notices])
    done = 0
    for notice in notices:
        webhook = webhooks[notice.webhook_id]
        pause_s = min(_MAX_TELL_AGAIN_S, _TELL_AGAIN_S * 2 ** min(notice.tries, _MAX_DOUBLINGS))
        # Before it is told: however long that takes, nobody else tells it meanwhile.
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
            logger.warning("operators cannot be told, tried again in some %.0f s: %s", pause_s, fault)
    return done


def make_message(notice: Notice, webhook: COTWebhook | None) -> dict[str, object]:
    """Return what is sent to the operators' URL."""
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
