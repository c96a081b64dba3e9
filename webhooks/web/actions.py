"""What people may do on the pages: each action with its question, what it does, and the record of it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from bson import ObjectId
from tornado.web import HTTPError, RequestHandler, authenticated

from webhooks.delivery import operate, resending
from webhooks.delivery.resending import FailedCount
from webhooks.delivery.skip import Skipped
from webhooks.errors import CannotAct, InvalidWebhook
from webhooks.models import COTWebhook
from webhooks.models.wire import parse_object_id
from webhooks.rules.health import FULL_RATE
from webhooks.store.gates import By, Gate, State
from webhooks.store.log_filter import read_filter
from webhooks.store.logs import LogQuery
from webhooks.store.mongo import Document
from webhooks.store.stores import Stores
from webhooks.web.base import PageHandler, RefusedError, call_in_thread
from webhooks.web.extension import page_path

logger = logging.getLogger(__name__)

#: Characters of a reason.
_MAX_REASON = 300
#: Logs of failed attempts that are looked at for a count.
_COUNTED = 5_000
#: Seconds that an action may take: deactivating a shut webhook waits until all workers know of it.
_ACT_S = 20.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a form asks for."""

    #: Made with the form, so that a form that is sent twice acts once.
    action_id: ObjectId
    who: str
    webhook_id: ObjectId
    delivery_id: str
    reason: str
    #: Of what failed: since when to resend it. Of a job: which one.
    since: str
    job_id: str


#: Does it, and says what came of it. The document is the webhook's.
Act = Callable[[Stores, Document, Asked], str]


@dataclass(frozen=True, slots=True)
class Action:
    """Something that people may do to a webhook."""

    name: str
    #: On the button that asks, and on the one that does it.
    label: str
    confirm: str
    #: What happens, for who is about to do it.
    question: str
    act: Act
    has_reason: bool = False
    is_grave: bool = False


@dataclass(frozen=True, slots=True)
class OfferedAction:
    """An action on a page."""

    action: Action
    #: Where its form goes to.
    address: str
    #: Made for this form.
    action_id: ObjectId


def _pause(stores: Stores, document: Document, asked: Asked) -> str:
    is_changed = stores.gates.pause(document["_id"], By.OPERATOR, asked.reason or "an operator paused it")
    if not is_changed:
        raise CannotAct("An operator had paused the webhook already.")
    return "The webhook is paused. What is pending is held, and no retry is used up."


def _resume(stores: Stores, document: Document, _: Asked) -> str:
    if not operate.let_through(stores, document["_id"]):
        raise CannotAct("The webhook was neither paused nor stopped.")
    gate = stores.gates.get(document["_id"])
    return "The webhook is active." if gate.is_open else "Held deliveries are released, slowly at first."


def _drain(stores: Stores, document: Document, _: Asked) -> str:
    if not operate.let_through(stores, document["_id"], at_full_rate=True):
        raise CannotAct("The webhook was not paused, stopped or recovering.")
    return "Held deliveries are released as fast as the receiver takes them."


def _skip(stores: Stores, document: Document, _: Asked) -> str:
    done: Skipped = operate.skip_first(stores, document)
    if done.logs:
        return f"Delivery {done.logs[0].details.delivery_id} is given up; its log says so."
    if done.busy:
        raise CannotAct("A worker is attempting the oldest delivery now. Try again when the attempt has ended.")
    for delivery_id, why in done.broken.items():
        raise CannotAct(f"Delivery {delivery_id} cannot be skipped: {why}.")
    raise CannotAct("Nothing is pending for the webhook.")


def _deactivate(stores: Stores, document: Document, _: Asked) -> str:
    operate.deactivate(stores, document)
    return "The webhook is inactive. It gets no events, and what is pending ends with a log that says so."


def _activate(stores: Stores, document: Document, _: Asked) -> str:
    operate.activate(stores, document)
    return "The webhook is active and gets new events within 5 s. Events of the time in between are not made up for."


def _test(stores: Stores, document: Document, _: Asked) -> str:
    delivery = operate.send_test(stores, operate.get_active(document))
    return f"A test event is on its way as delivery {delivery.delivery_id}."


def _resend(stores: Stores, document: Document, asked: Asked) -> str:
    delivery = operate.resend_delivery(stores, document, asked.delivery_id)
    return f"It is on its way again as delivery {delivery.delivery_id}."


def count_failed(stores: Stores, webhook_id: ObjectId, since: str) -> FailedCount:
    """Count what failed for good at a webhook since a time.

    Raises:
        CannotAct: that is no time.
    """
    asked = read_filter({"webhook": str(webhook_id), "since": since}, stores.deliveries.now())
    if asked.errors:
        raise CannotAct(asked.errors["since"])
    return resending.count_failed(stores, asked, _COUNTED)


def _resend_failed(stores: Stores, document: Document, asked: Asked) -> str:
    operate.get_active(document)
    found = count_failed(stores, asked.webhook_id, asked.since or "0s")
    if not found.total:
        raise CannotAct("Nothing failed for good since then that was not resent.")
    job = resending.begin_job(stores, found, resending.RATE, by=asked.who, action_id=asked.action_id)
    return f"Job {job.job_id} resends {found.text}, behind what waits for the webhook."


def _stop_resend(stores: Stores, _: Document, asked: Asked) -> str:
    job = resending.stop_job(stores, asked.job_id, by=asked.who)
    if job is None:
        raise CannotAct("The job is not running.")
    return f"Job {job.job_id} is stopped. {resending.describe_job(job)}"


_PAUSE = Action(
    "pause",
    "Pause",
    "Pause the webhook",
    "Its deliveries are held until somebody resumes it, on all workers at once. An attempt that is being made goes on.",
    _pause,
    has_reason=True,
)
_RESUME = Action(
    "resume", "Resume", "Resume the webhook", "Held deliveries are released, slowly at first, then faster.", _resume
)
_DRAIN = Action(
    "drain",
    "Drain",
    "Drain the webhook",
    "Held deliveries are released as fast as the receiver takes them. "
    "That may overload a receiver that has just come back.",
    _drain,
)
_SKIP = Action(
    "skip",
    "Skip the oldest",
    "Give it up",
    "The oldest pending delivery is given up. The receiver never gets it, unless it is resent.",
    _skip,
    is_grave=True,
)
_DEACTIVATE = Action(
    "deactivate",
    "Deactivate",
    "Deactivate the webhook",
    "It gets no more events, and everything that is pending for it is given up.",
    _deactivate,
    is_grave=True,
)
_ACTIVATE = Action("activate", "Activate", "Activate the webhook", "It gets new events again, within 5 s.", _activate)
_TEST = Action(
    "test",
    "Send a test event",
    "Send it",
    "The webhook alone gets an event of its trigger whose object says that it is a test.",
    _test,
)
RESEND = Action(
    "resend",
    "Resend",
    "Resend the delivery",
    "The receiver gets the event once more, with the same webhook-id, behind what waits for it. "
    "One that has it already and does not compare ids processes it twice.",
    _resend,
)
RESEND_FAILED = Action(
    resending.ACTION,
    "Resend what failed",
    "Resend them",
    "The receiver gets each once more, with the same webhook-id, behind what waits for it. Deliveries that an operator "
    "gave up are left out. Workers do it, a few per second, and this page shows how far they are.",
    _resend_failed,
)
STOP_RESEND = Action("stop-resend", "Stop", "Stop the job", "What it has resent stays so.", _stop_resend)
#: By name.
ACTIONS: Mapping[str, Action] = {
    one.name: one
    for one in (_PAUSE, _RESUME, _DRAIN, _SKIP, _DEACTIVATE, _ACTIVATE, _TEST, RESEND, RESEND_FAILED, STOP_RESEND)
}


def choose_actions(webhook: COTWebhook | None, gate: Gate, *, has_pending: bool) -> list[Action]:
    """Return what makes sense to do to a webhook.

    Args:
        webhook: None for one that breaks the contract.
        gate: its gate.
        has_pending: whether anything is pending for it.
    """
    is_active = webhook is not None and webhook.isActive
    is_paused_by_operator = gate.state is State.PAUSED and gate.by is By.OPERATOR
    offered = {
        _TEST: is_active,
        _PAUSE: is_active and not is_paused_by_operator,
        _RESUME: gate.state in (State.PAUSED, State.STOPPED),
        _DRAIN: gate.state in (State.PAUSED, State.STOPPED)
        or (gate.state is State.RECOVERING and gate.rate < FULL_RATE),
        _SKIP: has_pending,
        _ACTIVATE: webhook is not None and not is_active,
        _DEACTIVATE: is_active,
    }
    return [action for action, is_offered in offered.items() if is_offered]


def offer(handler: RequestHandler, action: Action, webhook_id: object, delivery_id: str = "") -> OfferedAction:
    """Return an action as a page offers it."""
    address = page_path(handler, "webhook_action", webhook_id, action.name)
    if delivery_id:
        address = page_path(handler, "webhook_delivery_action", delivery_id, action.name)
    return OfferedAction(action, address, ObjectId())


class ActionHandler(PageHandler):
    """Does what a form of a page asks for."""

    def check_xsrf_cookie(self) -> None:
        """Ask for the form's token always: Flower does not where it asks for no login, or has a basic one."""
        RequestHandler.check_xsrf_cookie(self)
        super().check_xsrf_cookie()

    async def act(self, action: Action, webhook_id: ObjectId, delivery_id: str, back: str) -> None:
        """Do it, on record, and go back to the page that says what came of it."""
        reason = " ".join((self.get_body_argument("reason", "") or "").split())[:_MAX_REASON]
        given = self.get_body_argument("action_id", "") or ""
        if not ObjectId.is_valid(given):
            raise RefusedError(400, "Not done", "The form is incomplete. Open the page again.")
        since, job_id = (self.get_body_argument(name, "") or "" for name in ("since", "job"))
        asked = Asked(ObjectId(given), self.who, webhook_id, delivery_id, reason, since, job_id)
        error = await call_in_thread(partial(_act_on_record, self.stores, action, asked), _ACT_S)
        if error is not None:
            raise RefusedError(409, "Not done", error)
        logger.info("%s did %r to webhook %s", self.who or "somebody", action.name, webhook_id)
        self.redirect(f"{back}?done={asked.action_id}", status=303)

    def prepare(self) -> None:
        """Refuse who may only look."""
        super().prepare()
        if self.is_read_only:
            raise RefusedError(403, "Not allowed", "These pages are for reading only: WEBHOOKS_WEB_READONLY is set.")


class WebhookActionHandler(ActionHandler):
    """Acts on a webhook."""

    @authenticated
    async def post(self, webhook_id: str, name: str) -> None:
        """Do what is asked for."""
        action = ACTIONS.get(name)
        if action is None or action is RESEND:
            raise HTTPError(404)
        await self.act(action, read_id(webhook_id), "", page_path(self, "webhook", webhook_id))


class DeliveryActionHandler(ActionHandler):
    """Acts on a delivery."""

    @authenticated
    async def post(self, delivery_id: str, name: str) -> None:
        """Do what is asked for."""
        if name != RESEND.name:
            raise HTTPError(404)
        page = await self.read(self.stores.search.find_page, LogQuery(delivery_id=delivery_id), 1)
        webhook_id = page.rows[0].webhook_id if page.rows else None
        if not isinstance(webhook_id, ObjectId):
            self.not_found("No such delivery", "Nothing is known of the delivery any more.")
        await self.act(RESEND, webhook_id, delivery_id, page_path(self, "webhook_delivery", delivery_id))


def read_id(text: str) -> ObjectId:
    """Read an id of a URL.

    Raises:
        RefusedError: it is none.
    """
    try:
        return parse_object_id(text)
    except ValueError:
        raise RefusedError(404, "No such webhook", "A webhook's id is 24 hexadecimal digits.") from None


def _act_on_record(stores: Stores, action: Action, asked: Asked) -> str | None:
    """Do something, on record before and after.

    Returns:
        Why it was not done; None where it was, now or by the same form before.
    """
    document = stores.webhooks.get_stored(asked.webhook_id)
    if document is None:
        raise RefusedError(404, "No such webhook", "There is no webhook with this id any more.")
    try:
        with operate.on_record(
            stores,
            action.name,
            asked.webhook_id,
            by=asked.who,
            delivery_id=asked.delivery_id or None,
            reason=asked.reason,
            action_id=asked.action_id,
        ) as record:
            if record is not None:
                record.result = action.act(stores, document, asked)
    except (CannotAct, InvalidWebhook) as refusal:
        return str(refusal)
    return None
