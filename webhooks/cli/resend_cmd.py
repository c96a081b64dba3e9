"""``webhooks test`` and ``webhooks resend``: send what a person asks for, and show what comes of it."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import click
from bson import ObjectId

from webhooks.cli.delivery_cmd import follow_delivery
from webhooks.cli.filters import filter_options, read_options
from webhooks.cli.options import JSON_OPTION, webhook_argument
from webhooks.cli.output import Table, print_error, print_json
from webhooks.cli.stores import complete_delivery_id, find_user, find_webhook, get_stores, record_action
from webhooks.delivery import operate
from webhooks.delivery.resending import ACTION, RATE, begin_job, continue_job, count_failed, describe_job, stop_job
from webhooks.models import format_instant
from webhooks.models.wire import document_json
from webhooks.producer.app import app
from webhooks.rules.retry import Outcome
from webhooks.store.logs import LogQuery
from webhooks.store.resend_jobs import JobState, ResendJob
from webhooks.store.stores import Stores

#: Seconds for which a command waits for a delivery: somewhat more than its first attempt may take.
_WAIT_S = 20.0
_WAIT_OPTION = click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 3_600),
    default=_WAIT_S,
    show_default=True,
    metavar="SECONDS",
    help="Show its attempts for up to this long; 0 only sends it.",
)
#: Limits of deliveries per second.
_RATES = click.FloatRange(0.1, 1_000)
#: Logs of failed attempts that are looked at for the count, and webhooks that are named with theirs.
_COUNTED, _NAMED = 50_000, 10
_LISTED = 20
_GIVEN = click.core.ParameterSource.COMMANDLINE
#: Seconds between two looks at a job, and until a word about a job that no worker has begun.
_POLL_S, _BEGIN_S = 0.5, 10.0


@click.command()
@webhook_argument
@_WAIT_OPTION
@JSON_OPTION
def test(reference: str, company: ObjectId | None, wait_s: float, as_json: bool) -> None:
    """Send a test event to a webhook, and show the outcome. REF is an id or a code.

    The webhook alone gets an event of its trigger whose object says that it is a test. Exits with 1 if it is not
    delivered in time.
    """
    stores = _get_stores_to_send()
    document = find_webhook(stores.webhooks, reference, company)
    with record_action(stores, "test", document) as record:
        delivery = operate.send_test(stores, operate.get_active(document))
        record.result = f"A test event is on its way as delivery {delivery.delivery_id}."
    _show_outcome(stores, delivery.delivery_id, wait_s, as_json=as_json)


@click.command()
@click.argument("delivery_id", metavar="[DELIVERY]", required=False)
@click.option("--failed", "is_bulk", is_flag=True, help="Resend all that the filters choose and that failed for good.")
@filter_options
@click.option("--rate", type=_RATES, default=RATE, show_default=True, help="Deliveries per second.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@click.option("--detach", is_flag=True, help="Begin the job, and do not watch it.")
@click.option("--list", "is_list", is_flag=True, help="List the jobs of the last 30 days.")
@click.option("--watch", metavar="JOB", help="Watch a job.")
@click.option("--stop", metavar="JOB", help="Stop a job.")
@click.option("--continue", "again", metavar="JOB", help="Go on with a job that was stopped.")
@_WAIT_OPTION
@JSON_OPTION
def resend(
    delivery_id: str | None,
    is_bulk: bool,
    rate: float,
    yes: bool,
    detach: bool,
    is_list: bool,
    watch: str | None,
    stop: str | None,
    again: str | None,
    wait_s: float,
    as_json: bool,
    **filters: str | None,
) -> None:
    """Send a delivery that has ended once more, or all that failed.

    The receiver gets the same webhook-id. With --failed a job in the workers resends deliveries whose last attempt
    failed and after which none comes. The filters are about that attempt; --since is needed. Deliveries of inactive
    webhooks are left out, and those that an operator skipped, unless --kind skipped asks for them. A webhook gets the
    next one only while nothing else of it waits for its turn. Ctrl-C stops the job, and --continue goes on with it.
    """
    ways = [delivery_id is not None, is_bulk, is_list, watch is not None, stop is not None, again is not None]
    if sum(ways) != 1:
        raise click.UsageError("give a delivery's id, or one of --failed, --list, --watch, --stop and --continue")
    is_watched = is_bulk or watch is not None or again is not None
    _refuse_idle(is_bulk, [name for name, value in filters.items() if value], "--failed")
    _refuse_idle(is_bulk, ["rate", "yes"], "--failed")
    _refuse_idle(is_watched, ["detach"], "--failed, --watch and --continue")
    _refuse_idle(delivery_id is not None, ["wait_s"], "a delivery's id")
    stores = _get_stores_to_send()
    if delivery_id is not None:
        _resend_one(stores, complete_delivery_id(stores, delivery_id), wait_s, as_json=as_json)
    elif is_list:
        _list_jobs(stores, as_json=as_json)
    elif stop is not None:
        _stop(stores, _get_job(stores, stop), as_json=as_json)
    else:
        if is_bulk:
            job = _begin(stores, filters, rate, yes=yes)
        else:
            job = _get_job(stores, watch or again or "")
            if again is not None and not continue_job(stores, job, by=find_user()):
                raise click.ClickException(f"the job {job.job_id} is {job.state.value}, not stopped")
        if job is None:
            click.echo("nothing to resend")
        elif detach or as_json:
            _print_jobs([_get_job(stores, job.job_id)], as_json=as_json)
        else:
            _watch(stores, job.job_id)


def _refuse_idle(is_used: bool, names: Sequence[str], goes_with: str) -> None:
    """Refuse options of the command line that would have no effect."""
    context = click.get_current_context()
    for parameter in context.command.params:
        if not is_used and parameter.name in names and context.get_parameter_source(parameter.name) is _GIVEN:
            raise click.UsageError(f"{parameter.opts[0]} goes with {goes_with} only")


def _get_stores_to_send() -> Stores:
    """Return the stores, with the tasks known by which deliveries are queued."""
    app.loader.import_default_modules()
    return get_stores()


def _resend_one(stores: Stores, delivery_id: str, wait_s: float, *, as_json: bool) -> None:
    rows = stores.search.find_page(LogQuery(delivery_id=delivery_id), 1).rows
    webhook_id = rows[0].webhook_id if rows else None
    document = stores.webhooks.get_stored(webhook_id) if isinstance(webhook_id, ObjectId) else None
    if document is None:
        raise click.ClickException(f"nothing is known of the delivery {delivery_id}, or its webhook is gone")
    with record_action(stores, "resend", document, delivery_id=delivery_id) as record:
        delivery = operate.resend_delivery(stores, document, delivery_id)
        record.result = f"It is on its way again as delivery {delivery.delivery_id}."
    _show_outcome(stores, delivery.delivery_id, wait_s, as_json=as_json)


def _show_outcome(stores: Stores, delivery_id: str, wait_s: float, *, as_json: bool) -> None:
    if not as_json:
        click.echo(f"sent as {delivery_id}")
    if not wait_s:
        if as_json:
            print_json(document_json({"delivery_id": delivery_id}))
        return
    if not follow_delivery(stores, delivery_id, wait_s, as_json=as_json):
        raise click.exceptions.Exit(1)


# ── Jobs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _begin(stores: Stores, filters: dict[str, str | None], rate: float, *, yes: bool) -> ResendJob | None:
    """Count what is to be resent, ask, and begin a job; None if there is nothing."""
    asked = read_options(stores, {**filters, "result": Outcome.FAILED.value})
    if asked.query.since is None:
        raise click.UsageError("--failed needs --since: what failed before is left alone")
    found = count_failed(stores, asked, _COUNTED)
    if not found.total:
        return None
    print_error(f"{found.text} of {_count(len(found.by_webhook), 'webhook')} failed for good")
    _print_counts(stores, found.by_webhook)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("give --yes to resend them without a question")
        click.confirm(f"Resend them, {rate:g} per second?", abort=True, err=True)
    action_id, by = ObjectId(), find_user()
    with operate.on_record(stores, ACTION, asked.query.webhook_id, by=by, action_id=action_id) as record:
        job = begin_job(stores, found, rate, by=by, action_id=action_id)
        if record is not None:
            record.result = f"Job {job.job_id} has begun. {describe_job(job)}"
    return job


def _print_counts(stores: Stores, counts: Counter[ObjectId]) -> None:
    webhooks = stores.webhooks.get_many(list(counts))
    for webhook_id, count in counts.most_common(_NAMED):
        webhook = webhooks[webhook_id]
        note = "" if webhook is not None and webhook.isActive else ": left out, as nothing can be sent to it"
        print_error(f"  {count} of {webhook_id if webhook is None else f'{webhook.label} ({webhook_id})'}{note}")
    if len(counts) > _NAMED:
        print_error(f"  … and of {_count(len(counts) - _NAMED, 'other webhook')}")


def _get_job(stores: Stores, job_id: str) -> ResendJob:
    job = stores.resend_jobs.get(job_id)
    if job is None:
        raise click.ClickException(f"there is no job {job_id}; `webhooks resend --list` shows them")
    return job


def _stop(stores: Stores, job: ResendJob, *, as_json: bool) -> None:
    stopped = stop_job(stores, job.job_id, by=find_user())
    if stopped is None:
        raise click.ClickException(f"the job {job.job_id} is {job.state.value}, not running")
    if as_json:
        _print_jobs([stopped], as_json=True)
        return
    click.echo(f"stopped. {describe_job(stopped)} Go on: webhooks resend --continue {job.job_id}")


def _watch(stores: Stores, job_id: str) -> None:
    """Show a job's progress until its end; Ctrl-C stops it."""
    started, is_told, shown = time.monotonic(), False, ""
    try:
        while (job := _get_job(stores, job_id)).state is JobState.RUNNING:
            line = describe_job(job)
            if line != shown:
                _print_progress(line, is_last=False)
                shown = line
            is_new = job.seen_at is None and time.monotonic() - started > _BEGIN_S
            if is_new and not is_told:
                print_error("no worker has begun the job: is one of this version running? `webhooks check` says so")
                is_told = True
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        _print_progress("", is_last=True)
        _stop(stores, _get_job(stores, job_id), as_json=False)
        raise click.exceptions.Exit(130) from None
    _print_progress(f"{job.state.value}. {describe_job(job)}", is_last=True)
    if job.state is JobState.DONE and job.resent:
        click.echo(f"Those that fail again: webhooks logs --failed --since {format_instant(job.at)}")


def _print_progress(line: str, *, is_last: bool) -> None:
    if sys.stdout.isatty():
        click.echo(f"\r\x1b[K{line}", nl=is_last)
    elif line:
        click.echo(line)


def _list_jobs(stores: Stores, *, as_json: bool) -> None:
    _print_jobs(stores.resend_jobs.find(_LISTED), as_json=as_json)


def _print_jobs(jobs: list[ResendJob], *, as_json: bool) -> None:
    if as_json:
        for job in jobs:
            print_json(document_json(asdict(job)))
        return
    if not jobs:
        click.echo("no jobs")
    Table().print(
        [
            [
                job.job_id,
                job.state.value,
                format_instant(job.at),
                job.by,
                describe_job(job),
                " ".join(f"{name}={value}" for name, value in job.filter.items() if name != "result"),
            ]
            for job in jobs
        ]
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
