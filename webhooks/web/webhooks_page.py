"""``/webhooks``: all webhooks and how they do, the sick ones first."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache

import bson
from bson import CodecOptions, ObjectId
from tornado.web import authenticated

from webhooks.models import TRIGGERS
from webhooks.models.wire import parse_object_id
from webhooks.rules.figures import Figures
from webhooks.store.gates import By, Gate, State
from webhooks.store.mongo import Document
from webhooks.store.stores import Stores
from webhooks.store.webhooks import why_unusable
from webhooks.web.base import PageHandler
from webhooks.web.figures import SPANS, count_figures, get_figures

#: Webhooks of a page.
ROWS = 50
#: Webhooks that are looked at, by id.
MOST_WEBHOOKS = 5_000
#: Where counting of what is pending stops.
PENDING_LIMIT = 1_000
#: Below this share of successes a webhook counts as sick.
_SICK_BELOW = 0.9


@dataclass(frozen=True, slots=True)
class WebhookState:
    """Whether a webhook gets its events, in a word."""

    #: As shown.
    name: str
    #: Of Bootstrap's badges.
    style: str
    #: Why; empty where nothing is to be said.
    reason: str
    #: The sickest has the lowest.
    rank: int


@dataclass(frozen=True, slots=True)
class WebhookRow:
    """A webhook in the list."""

    webhook_id: object
    document: Document
    state: WebhookState
    figures: Figures | None
    #: Of the small chart, where the row is shown.
    bars: Sequence[tuple[float, float]] = ()
    #: `PENDING_LIMIT` stands for more, too; None where it cannot be told.
    pending: int | None = None


@dataclass(frozen=True, slots=True)
class WebhookList:
    """A page of the list."""

    rows: Sequence[WebhookRow]
    #: How many there are in all, and whether there may be more than that.
    total: int
    is_cut: bool
    #: How far back the figures go so far; None where all is counted.
    counted_since: datetime | None


def describe_state(document: Document, gate: Gate) -> WebhookState:
    """Say whether a webhook gets its events."""
    if unusable := _find_fault(bson.encode(document)):
        return WebhookState("invalid", "danger", unusable, 0)
    if not document["isActive"]:
        deactivated = document.get("deactivated")
        reason = deactivated.get("reason") if isinstance(deactivated, dict) else ""
        return WebhookState("inactive", "secondary", reason if isinstance(reason, str) else "", 5)
    if gate.state is State.STOPPED:
        return WebhookState("stopped", "danger", gate.reason, 0)
    if gate.state is State.PAUSED:
        return WebhookState("paused", "warning", gate.reason, 1 if gate.by is By.HEALTH else 3)
    if gate.state is State.RECOVERING:
        return WebhookState("recovering", "info", gate.reason, 2)
    return WebhookState("active", "success", "", 4)


@lru_cache(maxsize=2 * MOST_WEBHOOKS)
def _find_fault(stored: bytes) -> str | None:
    """Say why a webhook cannot be used; remembered, as checking thousands of them takes half a second."""
    return why_unusable(bson.decode(stored, CodecOptions(tz_aware=True)))


def sickness(state: WebhookState, figures: Figures | None) -> tuple[int, float]:
    """Return what sorts webhooks, the sick ones first."""
    rate = 1.0 if figures is None or figures.success_rate is None else figures.success_rate
    is_failing = state.name == "active" and rate < _SICK_BELOW
    return (2 if is_failing else state.rank), rate


def draw_spark(figures: Figures | None) -> list[tuple[float, float]]:
    """Return the small chart's bars: heights of successes and of failures, of 20 in all."""
    if figures is None:
        return []
    most = max([ok + failed for ok, failed in figures.spark] + [1])
    return [(_height(ok, most), _height(failed, most)) for ok, failed in figures.spark]


def _height(count: int, most: int) -> float:
    return round(max(1.0, count / most * 20), 1) if count else 0.0


class WebhooksHandler(PageHandler):
    """The list of webhooks."""

    @authenticated
    async def get(self) -> None:
        """Show the webhooks that the URL asks for."""
        asked = {name: self.argument(name).strip() for name in ("company", "trigger", "text")}
        span = self.argument("span") if self.argument("span") in SPANS else "hour"
        number = int(self.argument("page")) if self.argument("page").isdecimal() else 1
        errors = {}
        try:
            company = parse_object_id(asked["company"]) if asked["company"] else None
        except ValueError as error:
            company, errors["company"] = None, str(error)
        found = None
        if not errors:
            present = await self.read(self.stores.deliveries.now)
            await count_figures(span, present)
            query = (company, asked["trigger"] or None, asked["text"] or None)
            found = await self.read(find_webhooks, self.stores, query, span, present, max(1, number))
        self.show(
            "webhook_list.html",
            found=found,
            asked={**asked, "span": span},
            errors=errors,
            number=number,
            pages=1 if found is None else max(1, math.ceil(found.total / ROWS)),
            triggers=list(TRIGGERS),
            spans=list(SPANS),
            pending_limit=PENDING_LIMIT,
        )


def find_webhooks(
    stores: Stores, query: tuple[ObjectId | None, str | None, str | None], span: str, present: datetime, number: int
) -> WebhookList:
    """Read a page of the list.

    Args:
        stores: where to look.
        query: company, trigger and a text that name, code or URL hold.
        span: of `SPANS`.
        present: now.
        number: of the page, from 1.
    """
    documents = stores.webhooks.search(*query, MOST_WEBHOOKS)
    ids = [one["_id"] for one in documents if isinstance(one["_id"], ObjectId)]
    gates, figures = stores.gates.get_many(ids), get_figures().summarize(ids, span, present)
    rows = [_read_row(document, gates, figures) for document in documents]
    rows.sort(key=lambda row: (*sickness(row.state, row.figures), str(row.document.get("name") or "")))
    shown = rows[(number - 1) * ROWS : number * ROWS]
    counts = stores.pending.count_many(
        [r.webhook_id for r in shown if isinstance(r.webhook_id, ObjectId)], PENDING_LIMIT
    )
    return WebhookList(
        rows=[replace(row, bars=draw_spark(row.figures), pending=_pending(row, counts)) for row in shown],
        total=len(rows),
        is_cut=len(documents) == MOST_WEBHOOKS,
        counted_since=get_figures().counted_since(span, present),
    )


def _read_row(document: Document, gates: Mapping[ObjectId, Gate], figures: Mapping[ObjectId, Figures]) -> WebhookRow:
    webhook_id = document["_id"]
    gate = gates.get(webhook_id) if isinstance(webhook_id, ObjectId) else None
    found = figures.get(webhook_id) if isinstance(webhook_id, ObjectId) else None
    return WebhookRow(webhook_id, document, describe_state(document, gate or Gate(ObjectId())), found)


def _pending(row: WebhookRow, counts: Mapping[ObjectId, int]) -> int | None:
    return counts.get(row.webhook_id) if isinstance(row.webhook_id, ObjectId) else None
