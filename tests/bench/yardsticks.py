"""What the product is held against: a bare `requests` loop, and a plain Celery worker as a service would write it.

Imports nothing of the product, so that nothing of it can help or hinder. `stage` copies this file into an empty folder,
where it is a Celery app (``celery -A yardsticks worker``) and a program:

``yardsticks.py bare URL LINES SECONDS REPORT``  POST events in a loop, and write ``{"count", "seconds"}``
``yardsticks.py produce LINES PLAN REPORT``      hand events in: see `producer`, whose plans and reports are the same
"""

import json
import os
import sys
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import requests
from celery import Celery
from pymongo import MongoClient
from pymongo.collection import Collection

#: Also of the product, by its default.
_TIMEOUT_S = 15

app = Celery("yardsticks", broker=os.environ.get("BENCH_BROKER_URL"))
app.conf.task_default_queue = "plain"


@cache
def _logs() -> Collection[dict[str, Any]]:
    """Open the collection, once per pool process."""
    client: MongoClient[dict[str, Any]] = MongoClient(os.environ["BENCH_MONGODB_URL"])
    return client.get_default_database("webhooks")["plainlogs"]


@app.task(name="plain.send")
def send(url: str, event: dict[str, Any]) -> None:
    """POST an event, and log it."""
    response = requests.post(url, json=event, timeout=_TIMEOUT_S)
    _logs().insert_one(
        {
            "company": event["company"],
            "createdAt": datetime.now(UTC),
            "status": response.status_code,
            "retry": 0,
            "response": response.text,
            "event": event,
        }
    )


def bare(url: str, lines: list[dict[str, Any]], seconds: float) -> dict[str, float]:
    """POST bodies that are made already in a loop, over one connection."""
    bodies = [json.dumps(line["event"], separators=(",", ":")).encode() for line in lines]
    headers = {"Content-Type": "application/json"}
    count = 0
    with requests.Session() as session:
        session.post(url, data=bodies[0], headers=headers, timeout=_TIMEOUT_S)
        begun = time.monotonic()
        while (now := time.monotonic()) - begun < seconds:
            answer = session.post(url, data=bodies[count % len(bodies)], headers=headers, timeout=_TIMEOUT_S)
            answer.raise_for_status()
            count += 1
    return {"count": count, "seconds": now - begun}


def produce(lines: list[dict[str, Any]], plan: dict[str, Any]) -> dict[str, Any]:
    """Hand in events one at a time: as fast as it goes, or at a pace."""
    numbers = range(plan["first"], plan["count"], plan["step"])
    rates = []
    for _ in range(plan["rounds"]):
        begun = time.monotonic()
        for index, number in enumerate(numbers):
            line = lines[number % len(lines)]
            data = line["event"]["data"]
            data["number"], data["sent_at"] = number, time.monotonic()
            send.delay(line["url"], line["event"])  # pyright: ignore[reportFunctionMemberAccess]
            if plan["per_s"]:
                # From the beginning, not from the last one, so that the load is the same whatever one of them took.
                time.sleep(max(0.0, begun + (index + 1) / plan["per_s"] - time.monotonic()))
        rates.append(len(numbers) / (time.monotonic() - begun))
    return {"single": rates}


def main() -> None:
    """Do what the command line says."""
    what, *rest = sys.argv[1:]
    if what == "bare":
        url, path, seconds, report = rest
        told: dict[str, Any] = bare(url, _read(path), float(seconds))
    else:
        path, plan, report = rest
        told = produce(_read(path), json.loads(plan))
    Path(report).write_text(json.dumps(told))


def _read(path: str) -> list[dict[str, Any]]:
    with Path(path).open() as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    main()
