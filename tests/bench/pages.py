"""How long Flower's pages and the read API take on a long history. Requests come one by one, each with other ids.

python -m tests.lab.history mongodb://127.0.0.1:27017/history 10000000
python -m tests.bench.pages mongodb://127.0.0.1:27017/history
"""

import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pymongo
from pymongo.database import Database

from webhooks.store.tokens import TokenStore

#: Times that each page is asked for.
_TIMES = 60


def main(url: str) -> None:
    os.environ["WEBHOOKS_MONGODB_URL"] = url
    from tests.lab.flower import FlowerThread  # noqa: PLC0415 - reads the settings

    database: Database[dict[str, Any]] = pymongo.MongoClient(url, tz_aware=True).get_default_database()
    logs = _pick(database, random.Random(7))
    tokens = TokenStore(database)
    tokens.ensure_indexes()
    bearer = {company: f"Bearer {tokens.add(company, 'bench')[1]}" for company in {log["company"] for log in logs}}
    print(f"{database['webhooklogs'].estimated_document_count():,} logs; milliseconds of {_TIMES} requests each")
    print(f"{'page':<58} {'p50':>6} {'p95':>6} {'most':>6}")
    with FlowerThread() as flower:
        for name, make in _PAGES.items():
            took = []
            for log in logs:
                path = make(log)
                begun = time.monotonic()
                answer = flower.get(path, {"Authorization": bearer[log["company"]]})
                took.append((time.monotonic() - begun) * 1000)
                assert answer.status == 200, (path, answer.status)
            took.sort()
            print(f"{name:<58} {took[len(took) // 2]:>6.0f} {took[int(len(took) * 0.95)]:>6.0f} {took[-1]:>6.0f}")


def _pick(database: Database[dict[str, Any]], chance: random.Random) -> Sequence[dict[str, Any]]:
    """Return logs of all times."""
    collection = database["webhooklogs"]
    ends = [collection.find_one(sort=[("createdAt", order)]) for order in (1, -1)]
    first, last = (end["createdAt"] for end in ends if end is not None)
    fields = {"event.data.note": 0}
    found = []
    while len(found) < _TIMES:
        at = first + timedelta(seconds=chance.random() * (last - first).total_seconds())
        log = collection.find_one({"createdAt": {"$gte": at}, "event.data._id": {"$exists": True}}, fields)
        if log is not None:
            found.append(log)
    return found


def _logs(query: str) -> Callable[[dict[str, Any]], str]:
    return lambda log: (
        "/webhooks/logs?"
        + query.format(
            company=log["company"],
            webhook=log["subscription"],
            object=log["event"]["data"]["_id"],
            type=log["event"]["type"],
            at=f"{log['createdAt']:%Y-%m-%dT%H:%M:%S.000Z}",
            **{name: log["attempt"][name] for name in ("event_id", "delivery_id")},
        )
    )


def _api(query: str) -> Callable[[dict[str, Any]], str]:
    return lambda log: (
        f"/api/v3/webhook/subscription/logs/{log['subscription']}"
        f"?{query}&before={log['createdAt']:%Y-%m-%dT%H:%M:%S.000Z}~0"
    )


_PAGES: dict[str, Callable[[dict[str, Any]], str]] = {
    "/webhooks": lambda _: "/webhooks",
    "/webhooks?span=day": lambda _: "/webhooks?span=day",
    "/webhooks/ID": lambda log: f"/webhooks/{log['subscription']}",
    "/webhooks/deliveries/ID": lambda log: f"/webhooks/deliveries/{log['attempt']['delivery_id']}",
    "/webhooks/events/ID": lambda log: f"/webhooks/events/{log['attempt']['event_id']}",
    "/webhooks/logs": _logs(""),
    "… a page in the middle of the history": _logs("before={at}~0"),
    "… company, object": _logs("company={company}&object={object}"),
    "… company, failed": _logs("company={company}&result=failed&before={at}~0"),
    "… webhook, since and until": _logs("webhook={webhook}&until={at}"),
    "… event": _logs("event={event_id}"),
    "… error kind": _logs("kind=tls&before={at}~0"),
    "… no response": _logs("status=none&before={at}~0"),
    "… type (no index)": _logs("type={type}&before={at}~0"),
    "… company, status that nobody answers (no index)": _logs("company={company}&status=418&before={at}~0"),
    "/api/v3/webhook/subscription": lambda _: "/api/v3/webhook/subscription",
    "/api/v3/webhook/subscription/ID": lambda log: f"/api/v3/webhook/subscription/{log['subscription']}",
    "/api/v3/webhook/subscription/logs/ID, the newest 100": (
        lambda log: f"/api/v3/webhook/subscription/logs/{log['subscription']}"
    ),
    "… 100 in the middle of the history": _api("limit=100"),
    "… 500": _api("limit=500"),
    "… 100 failed": _api("result=failed"),
    "… 100 with a class of status (no index)": _api("status=4xx"),
    "… a status that nobody answers (no index)": _api("status=418"),
}

if __name__ == "__main__":
    main(sys.argv[1])
