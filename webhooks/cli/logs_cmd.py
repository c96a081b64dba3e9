"""``webhooks logs``: show attempts as a table or as JSON, and follow new ones."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import click
from bson import ObjectId

from webhooks.cli.filters import filter_options, read_options
from webhooks.cli.options import JSON_OPTION, limit_option
from webhooks.cli.output import Cell, Table, print_error, print_json
from webhooks.cli.stores import get_stores, shorten
from webhooks.errors import StoreUnavailable
from webhooks.models import COTWebhookLog, describe_event, format_instant, now
from webhooks.models.wire import document_json
from webhooks.rules.hints import hint
from webhooks.rules.retry import Outcome, judge
from webhooks.store.logs import LogQuery, LogStore
from webhooks.store.search import is_bounded
from webhooks.store.stores import Stores

#: Minimum seconds between two polls; the pause is also a multiple of a poll's time, to spare a busy database.
_PAUSE_S = 0.5
_PAUSE_FACTOR = 5
#: Maximum delay of a log that is still found. Logs wait in the broker while MongoDB is away, and clocks differ.
WINDOW = timedelta(minutes=2)

#: Pages of a bounded search that one command reads.
_MOST_PAGES = 10
#: Columns of a terminal in which whole ids leave room for the response.
_WIDE = 180

_HEADER = ("TIME (UTC)", "RESULT", "RETRY", "EVENT", "WEBHOOK", "MS", "DELIVERY", "EVENT ID", "RESPONSE")


@click.command()
@filter_options
@click.option("--failed", "result", flag_value=Outcome.FAILED.value, help="Only attempts that failed.")
@click.option("--success", "result", flag_value=Outcome.SUCCESS.value, help="Only attempts that succeeded.")
@limit_option(minimum=0)
@click.option("--follow", "-f", is_flag=True, help="Print new ones until Ctrl-C.")
@JSON_OPTION
def logs(limit: int, follow: bool, as_json: bool, **filters: str | None) -> None:
    """Show attempts, the newest last.

    A result such as "409 connect_refused" means that no response came; RESPONSE has the reason. `webhooks show` takes
    what DELIVERY shows, `webhooks event` what EVENT ID shows.
    """
    if follow and filters["until"]:
        raise click.UsageError("--follow does not go with --until")
    stores = get_stores()
    query = read_options(stores, filters).query
    printer = LogPrinter(as_json=as_json)
    # Created before the first read, so that no log between the two is missed.
    follower = Follower(stores.logs, query, now()) if follow else None
    found, searched_to = read_newest(stores, query, limit) if limit else ([], None)
    printer.print(found)
    if searched_to is not None:
        at = format_instant(searched_to)
        print_error(f"note: no index serves these filters, so only logs since {at} were searched; --until {at} goes on")
    if follower:
        follower.note_shown(found)
        _follow(follower, printer)
    elif not found and not as_json:
        print_error("no logs found")


def read_newest(stores: Stores, query: LogQuery, limit: int) -> tuple[list[COTWebhookLog], datetime | None]:
    """Return the newest logs, oldest first, and how far back was searched where the search ended at its bound."""
    if not is_bounded(query):
        return stores.logs.read(query, limit)[::-1], None
    ids: dict[object, None] = {}
    page, cursor = None, None
    for _ in range(_MOST_PAGES):
        page = stores.search.find_page(query, limit - len(ids), cursor)
        ids |= {row.log_id: None for row in page.rows}  # the next page may repeat some
        cursor = page.next
        if cursor is None or len(ids) >= limit:
            break
    found = stores.logs.get_many([log_id for log_id in ids if isinstance(log_id, ObjectId)])
    return found, page.searched_to if page and len(ids) < limit else None


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
        write_id = str if self._table.width >= _WIDE else shorten
        rows: list[Sequence[str | Cell]] = [_row(log, write_id) for log in found]
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


def _row(log: COTWebhookLog, write_id: Callable[[str], str]) -> list[str | Cell]:
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
        write_id(attempt.delivery_id) if attempt else "-",
        write_id(attempt.event_id) if attempt else "-",
        first_line(log.response),
    ]


def first_line(response: str) -> str:
    """Return the first non-empty line of a response, with "…" if it has more."""
    first, *more = response.strip().splitlines() or [""]
    return f"{first} …" if more else first
