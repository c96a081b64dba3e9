"""What the product is compared with: a bare `requests` loop, and a plain Celery worker as a service would write it.

Imports nothing of the product. `environment` copies this file into an empty folder, where it is a Celery app
(``celery -A baselines worker``) and a program:

``baselines.py bare URL LINES SECONDS REPORT``    POST events in a loop, and write ``{"count", "seconds"}``
``baselines.py produce LINES HANDING REPORT``     hand in events; handings and reports are those of `producer`
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

#: The default of the product, too.
_TIMEOUT_S = 15

app = Celery("baselines", broker=os.environ.get("BENCH_BROKER_URL"))
app.conf.task_default_queue = "plain"


@cache
def _logs() -> Collection[dict[str, Any]]:
    """Open the collection, once per pool process."""
    client: MongoClient[dict[str, Any]] = MongoClient(os.environ["BENCH_MONGODB_URL"])
    return client.get_default_database("webhooks")["plainlogs"]


@app.task(name="plain.send")
def send(url: str, event: dict[str, Any]) -> None:
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
    """POST prepared bodies in a loop, over one connection."""
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


def produce(lines: list[dict[str, Any]], handing: dict[str, Any]) -> dict[str, Any]:
    numbers = range(handing["first"], handing["single"], handing["step"])
    rates = []
    for _ in range(handing["rounds"]):
        begun = time.monotonic()
        for index, number in enumerate(numbers):
            line = lines[number % len(lines)]
            data = line["event"]["data"]
            data["number"], data["sent_at"] = number, time.monotonic()
            send.delay(line["url"], line["event"])  # pyright: ignore[reportFunctionMemberAccess]
            if handing["per_s"]:
                # Counted from the start, so that a slow event does not lower the load.
                time.sleep(max(0.0, begun + (index + 1) / handing["per_s"] - time.monotonic()))
        rates.append(len(numbers) / (time.monotonic() - begun))
    return {"single": rates}


def main() -> None:
    what, *rest = sys.argv[1:]
    if what == "bare":
        url, path, seconds, report = rest
        told: dict[str, Any] = bare(url, _read(path), float(seconds))
    else:
        path, handing, report = rest
        told = produce(_read(path), json.loads(handing))
    Path(report).write_text(json.dumps(told))


def _read(path: str) -> list[dict[str, Any]]:
    with Path(path).open() as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    main()
