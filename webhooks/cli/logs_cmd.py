"""``webhooks logs``: what came of each attempt, as a table, as JSON, and as it happens."""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import click
from bson import ObjectId

from webhooks.cli.common import (
    MAX_LIMIT,
    Cell,
    InstantParam,
    Table,
    company_option,
    document_json,
    find_webhook,
    get_stores,
    json_option,
    print_error,
    print_json,
)
from webhooks.errors import StoreUnavailable
from webhooks.models import COTWebhookLog, describe_event, now
from webhooks.rules.hints import hint
from webhooks.rules.retry import Outcome, judge
from webhooks.store.logs import LogQuery, LogStore

#: Seconds between two looks for new logs, and by how much more than a look takes the pause is longer, so that
#: following costs a busy database little.
_PAUSE_S = 0.5
_PAUSE_FACTOR = 5
#: How late a log may be written and still be noticed. A worker that cannot reach MongoDB passes a log through the
#: broker, where it waits until one can; clocks of machines differ, too.
WINDOW = timedelta(minutes=2)

_RIGHT_ALIGNED = (5,)
_HEADER = ("TIME (UTC)", "RESULT", "RETRY", "EVENT", "WEBHOOK", "MS", "RESPONSE")


@click.command()
@click.option("--webhook", "reference", metavar="REF", help="Of this webhook: an id or a code.")
@company_option
@click.option("--event", "event_id", metavar="ID", help="Of this event: the id that `webhooks send` and Flower show.")
@click.option("--delivery", "delivery_id", metavar="ID", help="Of this delivery: what receivers get as `webhook-id`.")
@click.option("--failed", "outcome", flag_value=Outcome.FAILED, type=Outcome, help="Only attempts that failed.")
@click.option("--success", "outcome", flag_value=Outcome.SUCCESS, type=Outcome, help="Only attempts that succeeded.")
@click.option("--since", type=InstantParam(), help="From then on: 90s 30m 2h 7d ago, or a date, UTC without a zone.")
@click.option("--until", type=InstantParam(), help="Before then.")
@click.option(
    "-n",
    "limit",
    type=click.IntRange(0, MAX_LIMIT),
    default=20,
    show_default=True,
    help="How many at most, the newest.",
)
@click.option("--follow", "-f", is_flag=True, help="Go on with new ones as they come, until Ctrl-C.")
@json_option
def logs(
    reference: str | None,
    company: ObjectId | None,
    event_id: str | None,
    delivery_id: str | None,
    outcome: Outcome | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    follow: bool,
    as_json: bool,
) -> None:
    """Show attempts, the newest last.

    A result such as "409 connect_refused" means that no response came; RESPONSE has the reason.
    """
    if follow and until:
        raise click.UsageError("--follow goes on without end: it does not go with --until")
    stores = get_stores()
    query = LogQuery(
        webhook_id=find_webhook(stores.webhooks, reference, company)["_id"] if reference else None,
        company=company,
        outcome=outcome,
        event_id=event_id,
        delivery_id=delivery_id,
        since=since,
        until=until,
    )
    printer = LogPrinter(as_json=as_json)
    # Before the first reading: what is written between the two is in one of them, never in none.
    follower = Follower(stores.logs, query, now()) if follow else None
    found = stores.logs.read(query, limit)[::-1] if limit else []
    printer.print(found)
    if follower:
        follower.note_shown(found)
        _follow(follower, printer)
    elif not found and not as_json:
        print_error("there are no such logs")


def _follow(follower: "Follower", printer: "LogPrinter") -> None:
    """Print new logs until Ctrl-C, also past an outage of MongoDB."""
    is_away = False
    try:
        while True:
            begun = time.monotonic()
            try:
                printer.print(follower.poll(now()))
            except StoreUnavailable as error:
                if not is_away:
                    print_error(f"{error}; waiting for it")
                is_away = True
            else:
                if is_away:
                    print_error("MongoDB answers again")
                is_away = False
            time.sleep(max(_PAUSE_S, _PAUSE_FACTOR * (time.monotonic() - begun)) if not is_away else _PAUSE_S)
    except KeyboardInterrupt:
        return  # how people end it


class Follower:
    """Finds logs that were not there before.

    A log can be written after younger ones, so it is not enough to ask for what is younger than the last: all ids
    since `WINDOW` ago are read each time, and the whole logs of those that are new.
    """

    def __init__(self, store: LogStore, query: LogQuery, present: datetime) -> None:
        self._store = store
        self._query = query
        self._earliest = query.since
        self._seen: dict[ObjectId, datetime] = {}
        self._move_window(present)
        #: What was written during an outage comes late by as much: the window does not move on until then.
        self._hold_until = present
        self._seen = store.read_ids(self._query)

    def note_shown(self, shown: Sequence[COTWebhookLog]) -> None:
        """Take note of logs that were printed already."""
        self._seen |= {log.id: log.createdAt for log in shown}

    def poll(self, present: datetime) -> list[COTWebhookLog]:
        """Return the logs that are new since the last call, oldest first.

        Raises:
            StoreUnavailable: MongoDB cannot be read now; nothing is lost, the next call makes up for it.
        """
        try:
            ids = self._store.read_ids(self._query)
            new = [log_id for log_id in ids if log_id not in self._seen]
            found = self._store.get_many(new) if new else []
        except StoreUnavailable:
            self._hold_until = present + WINDOW
            raise
        self._seen |= {log_id: ids[log_id] for log_id in new}
        if present >= self._hold_until:
            self._move_window(present)
        return found

    def _move_window(self, present: datetime) -> None:
        since = present - WINDOW
        if self._earliest is not None:
            since = max(since, self._earliest)
        self._query = replace(self._query, since=since)
        self._seen = {log_id: at for log_id, at in self._seen.items() if at >= since}


class LogPrinter:
    """Prints logs as table rows or as JSON lines."""

    def __init__(self, *, as_json: bool = False, width: int | None = None) -> None:
        self._as_json = as_json
        self._table = Table(right=_RIGHT_ALIGNED, cut=True, width=width)
        self._has_header = False
        self._hinted: set[str] = set()

    def print(self, found: Sequence[COTWebhookLog]) -> None:
        """Print logs in the given order."""
        if self._as_json:
            for log in found:
                print_json(document_json(log.to_wire()))
            return
        rows: list[Sequence[str | Cell]] = [_row(log) for log in found]
        if rows and not self._has_header:
            rows.insert(0, [Cell(name, "bold") for name in _HEADER])
            self._has_header = True
        self._table.print(rows)
        kinds = dict.fromkeys(log.attempt.error_kind for log in found if log.attempt and log.attempt.error_kind)
        for kind in kinds:
            text = hint(kind)
            if text and kind not in self._hinted:
                self._hinted.add(kind)
                print_error(f"note: {kind}: {text}")


def print_logs(found: Sequence[COTWebhookLog]) -> None:
    """Print a table of logs in the given order."""
    LogPrinter().print(found)


def _row(log: COTWebhookLog) -> list[str | Cell]:
    attempt = log.attempt  # None in a log that another system wrote
    is_success = (attempt.outcome if attempt else judge(log.status)) == Outcome.SUCCESS
    result = (attempt.error_kind if attempt else None) or ("success" if is_success else "failed")
    retry = str(log.retry)
    if attempt and not is_success and attempt.next_at is None:
        retry += ", last"
    return [
        f"{log.createdAt:%Y-%m-%d %H:%M:%S}",
        Cell(f"{log.status} {result}", "green" if is_success else "red"),
        retry,
        describe_event(log.event),
        attempt.webhook if attempt else str(log.subscription),
        f"{attempt.total_ms:.0f}" if attempt and attempt.total_ms is not None else "-",
        first_line(log.response),
    ]


def first_line(response: str) -> str:
    """Return the first line of a response that says anything, with a sign when there are more."""
    first, *more = response.strip().splitlines() or [""]
    return f"{first} …" if more else first
