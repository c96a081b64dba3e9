"""A database with the history of some days, as workers leave it: for looking at the pages, and for measuring them.

python -m tests.lab.history mongodb://127.0.0.1:27017/history 10000
"""

import hashlib
import random
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from bson import ObjectId
from pymongo.database import Database

from webhooks.models import COTEvent, now
from webhooks.models.ids import make_delivery_id
from webhooks.models.wire import format_instant, to_json
from webhooks.rules.retry import judge, why_failed
from webhooks.store.deliveries import DeliveryStore
from webhooks.store.gates import By, GateStore
from webhooks.store.held import HeldDeliveries
from webhooks.store.logs import LogStore
from webhooks.store.mongo import open_database
from webhooks.store.traces import TraceStore
from webhooks.store.webhooks import WebhookStore

#: The company of the walk in the documentation.
COMPANY = ObjectId("625bcbdcc9a8e3a86dbf041c")
OTHER_COMPANY = ObjectId("6261612a8f1e997b825c8c10")
GROUP = ObjectId("6261612a8f1e99002e5c8cce")

#: Share of failures, statuses and kinds of failure, and the usual time of an attempt, of each webhook.
_WEBHOOKS: list[tuple[str, str, str, ObjectId, float, list[tuple[int, str | None, str]], float]] = [
    ("Work orders to SAP", "wo_update", "create-edit-delete-task", COMPANY, 0.04,
     [(502, None, "<html><h1>502 Bad Gateway</h1></html>"), (409, "timeout", "timeout of 15000ms exceeded")], 180),
    ("Tasks for the warehouse", "warehouse", "create-edit-delete-task", COMPANY, 1.0,
     [(409, "connect_timeout", "connect ETIMEDOUT 67.225.146.248:443")], 5_000),
    ("Surveys to BigQuery", "survey_export", "create-edit-delete-survey", COMPANY, 0.3,
     [(429, None, '{"error":"rate limit"}'), (500, None, "Internal Server Error")], 90),
    ("Users to the CRM", "crm_users", "create-edit-delete-user", COMPANY, 0.0, [(500, None, "")], 45),
    ("Logouts", "sso_logout", "logout-user", COMPANY, 0.02, [(401, None, '{"message":"signature mismatch"}')], 30),
    ("Notes", "notes", "create-edit-delete-note", OTHER_COMPANY, 0.1,
     [(409, "tls", "certificate has expired"), (409, "connect_refused", "connect ECONNREFUSED 203.0.113.7:443")], 60),
    ("Properties <b>old</b> \u202etset", "properties", "create-edit-delete-property", OTHER_COMPANY, 0.15,
     [(301, None, ""), (404, None, "<script>alert(1)</script>")], 75),
]  # fmt: skip
#: Which of them is paused.
_PAUSED = 1
_TYPES = {"task": "COTTask", "survey": "COTSurvey", "user": "COTUser", "note": "COTNote", "property": "COTProperty"}


def fill(database: Database[dict[str, Any]], count: int, *, end: datetime | None = None, seed: int = 1) -> None:
    """Write webhooks, logs, gates and pending deliveries.

    Args:
        database: an empty one.
        count: of logs, about.
        end: when the history ends; now by default.
        seed: the same gives the same history.
    """
    chance, end = random.Random(seed), end or now()
    LogStore(database).ensure_indexes(30)
    WebhookStore(database).ensure_indexes()
    ledger, gates = DeliveryStore(database, 25, 10), GateStore(database)
    ledger.ensure_indexes()
    gates.ensure_indexes()
    HeldDeliveries(database, ledger).ensure_indexes()
    webhooks = [_make_webhook(number) for number in range(len(_WEBHOOKS))]
    database["webhooks"].insert_many(webhooks)
    logs = _make_logs(webhooks, count, end, chance)
    while chunk := list(islice(logs, 5_000)):
        database["webhooklogs"].insert_many([log for log, _ in chunk])
        pending = [one for _, one in chunk if one is not None]
        if pending:
            database["deliveries"].insert_many(pending, ordered=False)
    traces = TraceStore(database)
    traces.ensure_indexes(30)
    unwanted = {**_make_event(webhooks[_PAUSED], 9_000_001, end, chance), "company": str(COMPANY)}
    unwanted |= {"type": "COTProperty", "createdAt": format_instant(unwanted["createdAt"]), "event": "create"}
    unwanted.pop("diff", None)
    traces.write([(str(_uuid(9_000_001)), COTEvent.model_validate(unwanted))])
    gates.pause(webhooks[_PAUSED]["_id"], By.HEALTH, "43 of 43 attempts failed in 12 min", 60)
    gates.note_held([webhooks[_PAUSED]["_id"]])
    gates.pause(webhooks[6]["_id"], By.OPERATOR, "their migration runs until noon")


def _make_webhook(number: int) -> dict[str, Any]:
    name, code, trigger, company, *_ = _WEBHOOKS[number]
    return {
        "_id": _id("webhook", number),
        "company": company,
        "isActive": True,
        "trigger": trigger,
        "url": f"https://{code.replace('_', '-')}.example.com/hooks/{code}",
        "name": name,
        "description": "",
        "code": code,
        "context": {"survey": "", "group": "", "taskGroup": GROUP if code == "warehouse" else ""},
        "__v": 0,
        **({"rate_limit": 20.0, "rate_burst": 5} if code == "survey_export" else {}),
        **({"ordered": True} if code == "crm_users" else {}),
    }


def _make_logs(
    webhooks: list[dict[str, Any]], count: int, end: datetime, chance: random.Random
) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Make logs, and with the last one of a delivery that has not ended what is pending of it."""
    written, number = 0, 0
    span_s = 36 * 3600
    while written < count:
        number += 1
        begun = end - timedelta(seconds=span_s * (1 - written / count) + chance.random() * 60)
        place = chance.choices(range(len(webhooks)), weights=[40, 8, 14, 10, 10, 9, 9])[0]
        webhook, (_, _, _, _, failing, failures, usual_ms) = webhooks[place], _WEBHOOKS[place]
        event = _make_event(webhook, number, begun, chance)
        event_id = str(_uuid(number))
        at = begun
        for retry in range(4):
            is_failed = chance.random() < failing * (1 if retry == 0 else 0.7 if failing < 1 else 1)
            status, kind, text = chance.choice(failures) if is_failed else (200, None, '{"ok":true}')
            total_ms = 15_000.0 if kind == "timeout" else usual_ms * chance.lognormvariate(0, 0.5)
            started, at = at, at + timedelta(milliseconds=total_ms)
            has_next = is_failed and retry < 3
            next_at = at + timedelta(seconds=120 if status == 429 else 30) if has_next else None
            log = _make_log(webhook, event, event_id, (started, at, next_at), (status, kind, text), retry, total_ms)
            is_held = place == _PAUSED and begun > end - timedelta(minutes=12)
            is_pending = has_next and next_at is not None and (next_at > end or is_held)
            yield log, _make_pending(log, event, webhook, is_held=is_held) if is_pending else None
            written += 1
            if not has_next or is_pending or next_at is None:
                break
            at = next_at


def _make_event(webhook: dict[str, Any], number: int, at: datetime, chance: random.Random) -> dict[str, Any]:
    event = {"company": webhook["company"], "createdAt": at.replace(microsecond=at.microsecond // 1000 * 1000)}
    if webhook["trigger"] == "logout-user":
        user = {"userId": _id("user", number % 50), "timestamp": int(at.timestamp() * 1000)}
        return {**event, "type": "Auth", "event": "logout", "data": None, "extraData": user}
    kind = webhook["trigger"].rpartition("-")[2]
    name = chance.choice(["create", "edit", "edit", "edit", "delete"])
    data = {
        "_id": str(_id(kind, number // 3)),
        "name": f" Equipment sector {number % 9} - Equipment {number % 4}-A",
        "taskGroup": str(GROUP),
        "assignee": str(_id("user", number % 50)),
        "serial": number,
        "note": "".join(chance.choices("abcdefghij ", k=600)),
    }
    diff = {"diff": {"/serial": {"previous": number - 1, "changedTo": number}}} if name == "edit" else {}
    return {**event, "type": _TYPES[kind], "event": name, "data": data, "extraData": None, **diff}


def _make_log(
    webhook: dict[str, Any],
    event: dict[str, Any],
    event_id: str,
    times: tuple[datetime, datetime, datetime | None],
    answer: tuple[int, str | None, str],
    retry: int,
    total_ms: float,
) -> dict[str, Any]:
    status, kind, text = answer
    started, ended, next_at = times
    has_connection = kind not in ("connect_timeout", "connect_refused")
    return {
        "_id": ObjectId(),
        "company": webhook["company"],
        "createdAt": ended,
        "status": status,
        "retry": retry,
        "response": text,
        "event": event,
        "subscription": webhook["_id"],
        "__v": 0,
        "attempt": {
            "delivery_id": make_delivery_id(event_id, webhook["_id"]),
            "event_id": event_id,
            "outcome": judge(None if kind else status).value,
            "error_kind": kind,
            "reason": None if kind else why_failed(status),
            "webhook": webhook["code"],
            "origin": webhook["url"].rpartition("/hooks/")[0],
            "peer": "67.225.146.248:443" if has_connection else None,
            "started_at": started,
            "next_at": next_at,
            "lookup_ms": total_ms * 0.05,
            "connect_ms": total_ms * (0.15 if has_connection else 0.95),
            "tls_ms": total_ms * 0.2 if has_connection else None,
            "send_ms": total_ms * 0.02 if has_connection else None,
            "wait_ms": total_ms * 0.5 if has_connection else None,
            "read_ms": total_ms * 0.08 if has_connection and not kind else None,
            "total_ms": total_ms,
            "response_cut": False,
            "worker": "celery@worker-1",
            "retry_after_s": 120.0 if status == 429 else None,
            "probe": False,
            "kept": False,
        },
    }


def _make_pending(
    log: dict[str, Any], event: dict[str, Any], webhook: dict[str, Any], *, is_held: bool
) -> dict[str, Any]:
    details = log["attempt"]
    wire = {**event, "company": str(event["company"]), "createdAt": format_instant(event["createdAt"])}
    if isinstance(event["extraData"], dict):
        wire["extraData"] = {**event["extraData"], "userId": str(event["extraData"]["userId"])}
    return {
        "_id": details["delivery_id"],
        "event_id": details["event_id"],
        "webhook_id": webhook["_id"],
        "company": webhook["company"],
        "label": f"{event['type']} {event['event']} → {webhook['code']} ({details['origin']})",
        "body": to_json(wire),
        "retry": log["retry"] + 1,
        "created_at": details["started_at"],
        **({"held": True} if is_held else {"due_at": details["next_at"]}),
    }


def _id(kind: str, number: int) -> ObjectId:
    return ObjectId(hashlib.sha256(f"{kind} {number}".encode()).digest()[:12])


def _uuid(number: int) -> str:
    digits = hashlib.sha256(f"event {number}".encode()).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:32]}"


if __name__ == "__main__":
    fill(open_database(sys.argv[1], 60), int(sys.argv[2]))
