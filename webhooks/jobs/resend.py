"""Carries out the jobs that resend failed deliveries: behind live traffic, and each delivery once.

A webhook gets the next one only while nothing of it waits for its turn, so that live deliveries never wait behind many
resent ones. A job marks what it sends with its id, and the ledger takes no id twice: a job that begins anew, after its
worker died or it was stopped, sends nothing a second time.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from bson import ObjectId
from celery.signals import worker_ready

from webhooks.config import Settings
from webhooks.delivery.operate import accept, make_delivery
from webhooks.delivery.queueing import queue_next
from webhooks.delivery.services import Services
from webhooks.delivery.stopping import stopping
from webhooks.jobs.sweep import start_job
from webhooks.models import COTWebhook, COTWebhookLog
from webhooks.models.ids import make_resent_id
from webhooks.rules.retry import Outcome
from webhooks.store.deliveries import Delivery
from webhooks.store.failed import FailedDelivery
from webhooks.store.log_filter import find_query, read_filter
from webhooks.store.logs import LogQuery
from webhooks.store.resend_jobs import JobState, ResendJob
from webhooks.store.search import Cursor

logger = logging.getLogger(__name__)

#: Seconds between two looks for jobs, and for which a run carries out those that it found.
_RUN_S = 2.0
#: Seconds between two steps of a job.
_STEP_S = 0.1
#: Webhooks that one step looks at.
_MOST_LOOKS = 50
#: Deliveries that a webhook gets in one step: a live one that comes next waits for no more than these.
_MOST_AT_ONCE = 4
#: Seconds until a webhook that had no room is looked at again.
_AGAIN_S = 0.5
#: Seconds between two notes of a job that waits.
_NOTE_EVERY_S = 1.0


@dataclass(slots=True)
class _Line:
    """What is to be resent to one webhook."""

    webhook_id: ObjectId
    found: deque[FailedDelivery] = field(default_factory=deque)
    after: Cursor | None = None
    is_last: bool = False
    #: What it waits for; empty: for nothing.
    waits: str = ""
    #: When to look at it again, by the runner's clock.
    again_at: float = float("-inf")


@dataclass(slots=True)
class _Progress:
    """How far this process has come with a job."""

    query: LogQuery
    #: Webhooks take turns.
    lines: deque[_Line]
    #: When it was counted what the rate allows, and how many deliveries that are. Times are of the runner's clock.
    counted_at: float
    allowed: float = 0.0
    noted_at: float = float("-inf")
    left_out: int = 0


@worker_ready.connect
def _start(**_: object) -> None:
    start_job("resend", Resender().resend, _RUN_S)


class Resender:
    """Carries out jobs; one per worker process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: By the job's id.
        self._progress: dict[str, _Progress] = {}

    def resend(self, services: Services, settings: Settings) -> int:
        """Carry out the jobs for a while; return how many deliveries were resent.

        Raises:
            StoreUnavailable: MongoDB is unavailable.
        """
        jobs = services.resend_jobs.find_running()
        for job_id in self._progress.keys() - {job.job_id for job in jobs}:
            del self._progress[job_id]
        sent, end = 0, self._clock() + _RUN_S
        while jobs and self._clock() < end and not stopping.is_set():
            for job in list(jobs):
                count, goes_on = self.step(services, job)
                sent += count
                if not goes_on:
                    jobs.remove(job)
            stopping.wait(_STEP_S)
        return sent

    def step(self, services: Services, job: ResendJob) -> tuple[int, bool]:
        """Resend what a job's rate allows now; return how many deliveries, and whether the job goes on."""
        # After an error the job begins anew.
        progress = self._progress.pop(job.job_id, None) or self._begin(services, job)
        sent, goes_on = self._carry_on(services, job, progress)
        if goes_on:
            self._progress[job.job_id] = progress
        return sent, goes_on

    def _begin(self, services: Services, job: ResendJob) -> _Progress:
        asked = read_filter(job.filter, job.at)
        if asked.errors or asked.query.since is None:  # it was changed by hand
            return _Progress(asked.query, deque(), self._clock())
        query = find_query(asked, services.webhooks)
        # What it resends itself ends later.
        until = job.at if query.until is None else min(query.until, job.at)
        query = replace(query, outcome=Outcome.FAILED, until=until)
        webhook_ids = [query.webhook_id] if query.webhook_id is not None else services.failed.find_webhooks(query)
        return _Progress(query, deque(_Line(webhook_id) for webhook_id in webhook_ids), self._clock())

    def _carry_on(self, services: Services, job: ResendJob, progress: _Progress) -> tuple[int, bool]:
        present = self._clock()
        at_once = min(_MOST_AT_ONCE, max(1, int(job.rate * _STEP_S)))
        progress.allowed = min(
            1 + job.rate * 2 * _STEP_S, progress.allowed + job.rate * (present - progress.counted_at)
        )
        progress.counted_at = present
        sent = 0
        for _ in range(min(len(progress.lines), _MOST_LOOKS)):
            if progress.allowed < 1:
                break
            line = progress.lines.popleft()
            if line.again_at <= present:
                chosen = _take(services, progress, line, min(at_once, int(progress.allowed)))
                count, line.waits = _send(services, job, progress, line, chosen) if chosen else (0, "")
                sent += count
                progress.allowed -= count
                line.again_at = present + _AGAIN_S if line.waits else present
            if line.found or not line.is_last:
                progress.lines.append(line)
        is_done = not progress.lines
        if not sent and not is_done and present - progress.noted_at < _NOTE_EVERY_S:
            return 0, True
        progress.noted_at = present
        waits = "" if sent else next((line.waits for line in progress.lines if line.waits), "")
        goes_on = services.resend_jobs.note(job.job_id, resent=sent, left_out=progress.left_out, waits=waits)
        if goes_on and is_done and services.resend_jobs.change(job.job_id, JobState.RUNNING, JobState.DONE):
            _report_end(services, job.job_id)
        return sent, goes_on and not is_done


def _take(services: Services, progress: _Progress, line: _Line, most: int) -> list[FailedDelivery]:
    """Return the next deliveries of a webhook, and leave them in its line."""
    if not line.found and not line.is_last:
        query = replace(progress.query, webhook_id=line.webhook_id)
        found, line.after = services.failed.find_batch(query, line.after)
        line.found.extend(found)
        line.is_last = line.after is None
    return [line.found[place] for place in range(min(most, len(line.found)))]


def _send(
    services: Services, job: ResendJob, progress: _Progress, line: _Line, chosen: Sequence[FailedDelivery]
) -> tuple[int, str]:
    """Resend the first deliveries of a line if its webhook has room; return how many, and what they wait for."""
    webhook = services.webhooks.get(line.webhook_id)
    if webhook is None or not webhook.isActive:
        progress.left_out += len(line.found)
        line.found.clear()
        return 0, ""
    why = _why_not(services, webhook, services.deliveries.now())
    if why:
        return 0, f"{webhook.label}: {why}"
    for _ in chosen:
        line.found.popleft()
    # Since they were found, a person may have resent them.
    still = services.failed.keep_failed(chosen)
    logs = services.logs.get_many([one.log_id for one in still])
    deliveries = [_make_delivery(webhook, log, job) for log in logs if not log.details.event_cut]
    accept(services.records, deliveries)
    if webhook.ordered:
        queue_next(services, webhook)
    progress.left_out += len(chosen) - len(deliveries)
    return len(deliveries), ""


def _make_delivery(webhook: COTWebhook, log: COTWebhookLog, job: ResendJob) -> Delivery:
    details = log.details
    return make_delivery(webhook, log.event, details.event_id, make_resent_id(details.delivery_id, job.job_id))


def _why_not(services: Services, webhook: COTWebhook, present: datetime) -> str:
    """Say why a webhook has no room for a resent delivery; empty if it has."""
    gate = services.gates.get(webhook.id)
    if not gate.is_open:
        return f"it is {gate.state.value}"
    if gate.is_held_back(present):
        return "its receiver asked to wait"
    if not services.failed.has_room(webhook.id, present):
        return "other deliveries of it come first"
    return ""


def _report_end(services: Services, job_id: str) -> None:
    job = services.resend_jobs.get(job_id)
    if job is None:
        return
    text = f"{job.resent} of {job.total} deliveries were resent, {job.left_out} were left out."
    logger.info("resend %s is done: %s", job_id, text)
    if isinstance(job.action_id, ObjectId):
        services.actions.end(job.action_id, text)
