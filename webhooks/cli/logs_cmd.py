"""``webhooks logs``: show attempts as a table or as JSON, and follow new ones."""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import click
from bson import ObjectId

from webhooks.cli.options import COMPANY_OPTION, INSTANT, JSON_OPTION, limit_option
from webhooks.cli.output import Cell, Table, print_error, print_json
from webhooks.cli.stores import find_webhook, get_stores
from webhooks.errors import StoreUnavailable
from webhooks.models import COTWebhookLog, describe_event, now
from webhooks.models.wire import document_json
from webhooks.rules.hints import hint
from webhooks.rules.retry import Outcome, judge
from webhooks.store.logs import LogQuery, LogStore

#: Minimum seconds between two polls; the pause is also a multiple of a poll's time, to spare a busy database.
_PAUSE_S = 0.5
_PAUSE_FACTOR = 5
#: Maximum delay of a log that is still found. Logs wait in the broker while MongoDB is away, and clocks differ.
WINDOW = timedelta(minutes=2)

_HEADER = ("TIME (UTC)", "RESULT", "RETRY", "EVENT", "WEBHOOK", "MS", "RESPONSE")


@click.command()
@click.option("--webhook", "reference", metavar="REF", help="Only of this webhook: an id or a code.")
@COMPANY_OPTION
@click.option(
    "--event", "event_id", metavar="ID", help="Only of this event: the id that `webhooks send` and Flower show."
)
@click.option("--delivery", "delivery_id", metavar="ID", help="Only of this delivery: the header `webhook-id`.")
@click.option("--failed", "outcome", flag_value=Outcome.FAILED, type=Outcome, help="Only attempts that failed.")
@click.option("--success", "outcome", flag_value=Outcome.SUCCESS, type=Outcome, help="Only attempts that succeeded.")
@click.option("--since", type=INSTANT, help="Not before: 90s 30m 2h 7d ago, or a date, in UTC unless it has a zone.")
@click.option("--until", type=INSTANT, help="Only before.")
@limit_option(minimum=0)
@click.option("--follow", "-f", is_flag=True, help="Print new ones until Ctrl-C.")
@JSON_OPTION
def logs(
    reference: str | None, company: ObjectId | None, limit: int, follow: bool, as_json: bool, **filters: Any
) -> None:
    """Show attempts, the newest last.

    A result such as "409 connect_refused" means that no response came; RESPONSE has the reason.
    """
    if follow and filters["until"]:
        raise click.UsageError("--follow does not go with --until")
    stores = get_stores()
    webhook_id = find_webhook(stores.webhooks, reference, company)["_id"] if reference else None
    query = LogQuery(webhook_id=webhook_id, company=company, **filters)
    printer = LogPrinter(as_json=as_json)
    # Created before the first read, so that no log between the two is missed.
    follower = Follower(stores.logs, query, now()) if follow else None
    found = stores.logs.read(query, limit)[::-1] if limit else []
    printer.print(found)
    if follower:
        follower.note_shown(found)
        _follow(follower, printer)
    elif not found and not as_json:
        print_error("no logs found")


def _follow(follower: "Follower", printer: "LogPrinter") -> None:
    """Print new logs until Ctrl-C; wait while MongoDB is unavailable."""
    is_away = False
    try:
        while True:
            started = time.monotonic()
            try:
                printer.print(follower.poll(now()))
            except StoreUnavailable as error:
                if not is_away:
                    print_error(f"{error}; waiting")
                is_away = True
            else:
                if is_away:
                    print_error("MongoDB answers again")
                is_away = False
            time.sleep(_PAUSE_S if is_away else max(_PAUSE_S, _PAUSE_FACTOR * (time.monotonic() - started)))
    except KeyboardInterrupt:
        return


class Follower:
    """Finds new logs.

    A log may be written after younger ones. So each poll reads all ids of the last `WINDOW`, and the logs of new ids.
    """

    def __init__(self, store: LogStore, query: LogQuery, present: datetime) -> None:
        self._store = store
        self._query = query
        self._earliest = query.since
        self._seen: dict[ObjectId, datetime] = {}
        self._move_window(present)
        #: After an outage the window stays until this time, because logs of the outage are written late.
        self._hold_until = present
        self._seen = store.read_ids(self._query)

    def note_shown(self, shown: Sequence[COTWebhookLog]) -> None:
        """Mark logs as printed."""
        self._seen |= {log.id: log.createdAt for log in shown}

    def poll(self, present: datetime) -> list[COTWebhookLog]:
        """Return the logs that are new since the last call, oldest first.

        Raises:
            StoreUnavailable: MongoDB cannot be read now; the next call returns these logs too.
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
        self._table = Table(right=(5,), cut=True, width=width)
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
    """Return the first non-empty line of a response, with "…" if it has more."""
    first, *more = response.strip().splitlines() or [""]
    return f"{first} …" if more else first
