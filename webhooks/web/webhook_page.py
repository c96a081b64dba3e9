"""``/webhooks/{id}``: one webhook, how it stands, and what people may do to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from bson import ObjectId
from tornado.web import authenticated

from webhooks.delivery.operate import read_usable
from webhooks.delivery.resending import FailedCount, describe_job
from webhooks.errors import CannotAct
from webhooks.models import COTWebhook
from webhooks.rules.figures import Figures
from webhooks.store.gates import Gate
from webhooks.store.logs import LogQuery
from webhooks.store.mongo import Document
from webhooks.store.pending_details import PendingDetails
from webhooks.store.resend_jobs import ResendJob
from webhooks.store.search import LogRow
from webhooks.store.stores import Stores
from webhooks.store.webhooks import without_secrets
from webhooks.web.actions import RESEND_FAILED, STOP_RESEND, choose_actions, count_failed, offer, read_id
from webhooks.web.base import PageHandler
from webhooks.web.figures import count_figures, get_figures
from webhooks.web.webhooks_page import WebhookState, describe_state, draw_spark

#: Attempts, pending deliveries, lines of history and jobs that are shown.
_ATTEMPTS, _PENDING, _HISTORY, _JOBS = 10, 10, 20, 5
#: Where counting of what is pending stops.
_COUNT_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """Something that happened to a webhook."""

    at: datetime | None
    what: str
    text: str
    #: Who did it; empty for what happened by itself.
    by: str


@dataclass(frozen=True, slots=True)
class FoundWebhook:
    """All that the page shows."""

    document: Document
    #: None for one that breaks the contract.
    webhook: COTWebhook | None
    gate: Gate
    state: WebhookState
    figures: Figures
    held: int
    outstanding: int
    pending: Sequence[PendingDetails]
    rows: Sequence[LogRow]
    history: Sequence[HistoryLine]
    #: Each with how far it has come.
    resend_jobs: Sequence[tuple[ResendJob, str]]
    present: datetime


class WebhookHandler(PageHandler):
    """One webhook."""

    @authenticated
    async def get(self, webhook_id: str) -> None:
        """Show it."""
        present = await self.read(self.stores.deliveries.now)
        await count_figures("day", present)
        found = await self.read(find_webhook, self.stores, read_id(webhook_id), present)
        if found is None:
            self.not_found("No such webhook", "There is no webhook with this id. Its logs may still be there.")
        has_pending = bool(found.held or found.outstanding)
        actions = choose_actions(found.webhook, found.gate, has_pending=has_pending)
        since = self.argument("resend_since").strip()
        self.show(
            "webhook_one.html",
            found=found,
            bars=draw_spark(found.figures),
            done=await self.find_done(),
            actions=[offer(self, action, found.document["_id"]) for action in actions],
            count_limit=_COUNT_LIMIT,
            resend_since=since,
            failed=await self.read(_count_failed, self.stores, found.document["_id"], since) if since else None,
            resend=offer(self, RESEND_FAILED, found.document["_id"]),
            stop=offer(self, STOP_RESEND, found.document["_id"]),
        )


def _count_failed(stores: Stores, webhook_id: ObjectId, since: str) -> FailedCount | str:
    """Count what can be resent; return what is wrong with the time if it is none."""
    try:
        return count_failed(stores, webhook_id, since)
    except CannotAct as error:
        return str(error)


def find_webhook(stores: Stores, webhook_id: ObjectId, present: datetime) -> FoundWebhook | None:
    """Read a webhook and how it stands; None where there is none."""
    document = stores.webhooks.get_stored(webhook_id)
    if document is None:
        return None
    gate = stores.gates.get(webhook_id)
    return FoundWebhook(
        document=without_secrets(document),
        webhook=read_usable(document),
        gate=gate,
        state=describe_state(document, gate),
        figures=get_figures().summarize([webhook_id], "day", present)[webhook_id],
        held=stores.held.count_held(webhook_id, _COUNT_LIMIT),
        outstanding=stores.held.count_outstanding(webhook_id, _COUNT_LIMIT),
        pending=stores.pending.find_first([webhook_id], _PENDING),
        rows=stores.search.find_page(LogQuery(webhook_id=webhook_id), _ATTEMPTS).rows,
        history=_read_history(stores, webhook_id, gate),
        resend_jobs=[(one, describe_job(one)) for one in stores.resend_jobs.find_of_webhook(webhook_id, _JOBS)],
        present=present,
    )


def _read_history(stores: Stores, webhook_id: ObjectId, gate: Gate) -> list[HistoryLine]:
    """Return what happened to a webhook by itself and by people, the newest first."""
    lines = [HistoryLine(notice.at, notice.type.value, notice.reason, "") for notice in gate.notices]
    for done in stores.actions.find_of_webhook(webhook_id, _HISTORY):
        reason = f" Reason: {done.reason}" if done.reason else ""
        text = done.result or "It was begun, and what came of it is not known."
        lines.append(HistoryLine(done.at, done.action, text + reason, done.by or "somebody without a login"))
    return sorted(lines, key=lambda line: line.at.timestamp() if line.at else 0.0, reverse=True)[:_HISTORY]
