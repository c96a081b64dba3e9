"""``/webhooks/logs``: every attempt, newest first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from bson import ObjectId
from tornado.web import authenticated

from webhooks.errors import ErrorKind
from webhooks.models import COTWebhook
from webhooks.rules.retry import Outcome
from webhooks.store.log_filter import CLASSES, NAMES, TYPES, LogFilter, find_query, read_filter
from webhooks.store.logs import LogQuery
from webhooks.store.search import Cursor, LogPage
from webhooks.store.stores import Stores
from webhooks.store.traces import EventTrace
from webhooks.web.base import PageHandler
from webhooks.web.extension import page_path
from webhooks.web.filters import read_cursor, write_cursor

#: Rows of a page.
ROWS = 50
#: Events that no webhook asked for, of one object.
_UNWANTED = 20


@dataclass(frozen=True, slots=True)
class FoundLogs:
    """A page of logs, and the names of the webhooks in it."""

    page: LogPage
    names: Mapping[ObjectId, str]
    #: Where an object's logs are asked for, its events that no webhook asked for.
    unwanted: Sequence[EventTrace] = ()


class LogsHandler(PageHandler):
    """The list of logs."""

    @authenticated
    async def get(self) -> None:
        """Show the logs that the URL asks for."""
        now = await self.read(self.stores.deliveries.now)
        asked = read_filter({name: self.argument(name) for name in NAMES}, now)
        cursor = read_cursor(self.argument("before"))
        found: FoundLogs | None = None
        errors = dict(asked.errors)
        if not errors:
            try:
                found = await self.read(find_logs, self.stores, asked, cursor)
            except ValueError as error:
                errors["webhook"] = str(error)
        self.show(
            "webhook_logs.html",
            asked=asked,
            errors=errors,
            found=found,
            is_first=cursor is None,
            older=asked.to_url(before=write_cursor(found.page.next)) if found and found.page.next else None,
            choices={"result": list(Outcome), "status": CLASSES, "kind": list(ErrorKind), "type": TYPES},
        )


def find_logs(stores: Stores, asked: LogFilter, cursor: Cursor | None) -> FoundLogs:
    """Read a page of logs.

    Raises:
        ValueError: no webhook, or more than one, has the code that is asked for.
    """
    query = find_query(asked, stores.webhooks)
    page = stores.search.find_page(query, ROWS, cursor)
    ids = {row.webhook_id for row in page.rows if isinstance(row.webhook_id, ObjectId)}
    names = {one_id: name_webhook(one) for one_id, one in stores.webhooks.get_many(ids).items()}
    unwanted = (
        [] if query.object_id is None or cursor is not None else stores.traces.find_object(query.object_id, _UNWANTED)
    )
    return FoundLogs(page, names, unwanted)


def name_webhook(webhook: COTWebhook | None) -> str:
    """Return what people call a webhook; empty for one that is missing or cannot be used."""
    return "" if webhook is None else webhook.name or webhook.code


class FindHandler(PageHandler):
    """The search box: leads to what an id belongs to."""

    @authenticated
    async def get(self) -> None:
        """Go to the page of the delivery, webhook, event or object with the given id."""
        wanted = self.argument("id").strip()
        if not wanted:
            self.redirect(page_path(self, "webhooks_logs"))
            return
        place, name = await self.read(find_place, self.stores, wanted)
        if place == "object":
            self.redirect(f"{page_path(self, 'webhooks_logs')}?{urlencode({'object': name})}")
        else:
            self.redirect(page_path(self, f"webhook_{place}" if place != "webhook" else place, name))


def find_place(stores: Stores, wanted: str) -> tuple[str, str]:
    """Return what a text is the id of, ``delivery``, ``event``, ``webhook`` or ``object``, and that id.

    Of what is nowhere it is said that it is an event: its page says so.
    """
    if wanted.startswith("msg_"):
        return "delivery", wanted
    if webhooks := stores.webhooks.find(wanted):
        return "webhook", str(webhooks[0]["_id"])
    if stores.search.find_page(LogQuery(event_id=wanted), 1).rows or stores.traces.find_event(wanted):
        return "event", wanted
    if stores.search.find_page(LogQuery(object_id=wanted), 1).rows or stores.traces.find_object(wanted, 1):
        return "object", wanted
    return "event", wanted
