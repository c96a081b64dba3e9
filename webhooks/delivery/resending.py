"""Jobs that resend what failed, from the command line and from Flower's pages; workers carry them out."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bson import ObjectId

from webhooks.rules.retry import Outcome
from webhooks.store.log_filter import LogFilter, find_query, write_values
from webhooks.store.resend_jobs import JobState, ResendJob
from webhooks.store.stores import Stores

#: Name of the action on record, and deliveries per second unless the user gives a rate.
ACTION = "resend-failed"
RATE = 10.0


@dataclass(frozen=True, slots=True)
class FailedCount:
    """How many deliveries failed for good, of those that filters choose."""

    #: For the job: as of `write_values`.
    filters: Mapping[str, str]
    by_webhook: Counter[ObjectId]
    #: Whether there are more than were counted.
    is_more: bool

    @property
    def total(self) -> int:
        """The number."""
        return self.by_webhook.total()

    @property
    def text(self) -> str:
        """The number, in words."""
        return f"{'more than ' if self.is_more else ''}{count_deliveries(self.total)}"


def count_deliveries(number: int) -> str:
    """Write a number of deliveries."""
    return "1 delivery" if number == 1 else f"{number} deliveries"


def count_failed(stores: Stores, asked: LogFilter, most: int) -> FailedCount:
    """Count what a job would resend.

    Args:
        stores: where to look.
        asked: which ones; with `since`.
        most: logs that are looked at.

    Raises:
        ValueError: the filters' webhook is not one.
    """
    present = stores.deliveries.now()
    query = find_query(asked, stores.webhooks)
    query = replace(query, outcome=Outcome.FAILED, until=min(present, query.until or present))
    counts, is_more = stores.failed.count(query, most)
    return FailedCount(write_values(asked.values, query), counts, is_more)


def begin_job(stores: Stores, found: FailedCount, rate: float, *, by: str, action_id: ObjectId) -> ResendJob:
    """Begin a job.

    Args:
        stores: where to write it down.
        found: what it is to resend.
        rate: deliveries per second.
        by: who begins it.
        action_id: of the record of that.
    """
    at = stores.deliveries.now()
    return stores.resend_jobs.begin(
        by=by, action_id=action_id, filters=found.filters, rate=rate, total=found.total, at=at
    )


def stop_job(stores: Stores, job_id: str, *, by: str) -> ResendJob | None:
    """Stop a job, on record; return it as it stands, or None if it was not running."""
    if not stores.resend_jobs.change(job_id, JobState.RUNNING, JobState.STOPPED):
        return None
    job = stores.resend_jobs.get(job_id)
    if job is not None:
        _record(stores, job, f"Stopped by {by or 'somebody without a login'}.")
    return job


def continue_job(stores: Stores, job: ResendJob, *, by: str) -> bool:
    """Go on with a job that was stopped, on record; return whether it was."""
    if not stores.resend_jobs.change(job.job_id, JobState.STOPPED, JobState.RUNNING):
        return False
    _record(stores, job, f"Continued by {by}.")
    return True


def _record(stores: Stores, job: ResendJob, text: str) -> None:
    if isinstance(job.action_id, ObjectId):
        stores.actions.end(job.action_id, f"{describe_job(job)} {text}")


def describe_job(job: ResendJob) -> str:
    """Say how far a job has come."""
    left = f", {job.left_out} left out" if job.left_out else ""
    waits = f" Waits: {job.waits}." if job.waits else ""
    return f"{job.resent} of {count_deliveries(job.total)} resent{left}.{waits}"
