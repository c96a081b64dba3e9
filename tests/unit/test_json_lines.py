"""Log lines as JSON: one object a line, whatever stands in a message."""

import json
import logging
import os
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.lab.logs import NOON, make_attempt, make_log
from webhooks.delivery.outcomes import Attempted, ToAttempt
from webhooks.delivery.record import record
from webhooks.store.deliveries import Claim, Delivery
from webhooks.worker.json_lines import JsonFormatter, _say


def make_record(text: str) -> logging.LogRecord:
    return logging.LogRecord("their.module", logging.WARNING, "", 0, "%s", (text,), None)


def read_line(record: logging.LogRecord) -> dict[str, Any]:
    """Format a record as a worker does, and read it again."""
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    return json.loads(line)


@pytest.mark.parametrize(
    "text",
    ['"}\n{"a": "', "\x1b[31m\r\0\x9b", "\u2028\u2029", "\ud800", "Grüße"],
    ids=["quote", "control", "separator", "surrogate", "umlaut"],
)
def test_line_is_one_object_whatever_its_message_holds(text: str):
    line = read_line(make_record(text))
    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "their.module", text)
    assert list(line) == ["time", "level", "logger", "message"]


def test_time_is_the_records_in_utc():
    made = make_record("m")
    made.created = NOON.timestamp() + 0.0129
    assert read_line(made)["time"] == "2026-05-05T12:00:00.012Z"


def test_traceback_stays_in_the_line(caplog: pytest.LogCaptureFixture):
    try:
        {}["a\nb"]
    except KeyError:
        logging.getLogger("x").exception("failed")
    line = read_line(caplog.records[0])
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("KeyError: 'a\\nb'")


def log_attempt(caplog: pytest.LogCaptureFixture, **fields: Any) -> logging.LogRecord:
    """Record an attempt; return its log record."""
    log = make_log("their\nanswer", attempt=make_attempt(**fields), retry=1)
    delivery = Delivery("msg_1", "e1", log.subscription, log.company, "COTTask create → wo_update", log.event.to_json())
    attempted = Attempted(ToAttempt(delivery, Claim("msg_1", 1, log.id), None), log)
    records = SimpleNamespace(keep_unended=lambda _: None, record=lambda logs: [None] * len(logs))
    with caplog.at_level(logging.INFO):
        record(cast("Any", SimpleNamespace(records=records)), [attempted])
    (made,) = caplog.records
    return made


def test_line_of_an_attempt_has_its_facts(caplog: pytest.LogCaptureFixture):
    next_at = NOON + timedelta(seconds=30)
    line = read_line(log_attempt(caplog, next_at=next_at, worker="celery@host", trace_id="4bf9", span_id="00f0"))
    assert line == {
        "time": line["time"],
        "level": "INFO",
        "logger": "webhooks.delivery.record",
        "message": line["message"],
        "delivery": "msg_1",
        "event": "e1",
        "webhook": "62685990d918fb5557f9f992",
        "company": "625bcbdcc9a8e3a86dbf041c",
        "retry": 1,
        "status": 409,
        "outcome": "failed",
        "error_kind": "connect_refused",
        "total_ms": 12.6,
        "next_at": "2026-05-05T12:00:30.000Z",
        "worker": "celery@host",
        "trace_id": "4bf9",
        "span_id": "00f0",
    }


def test_text_of_an_attempt_has_all_ids(caplog: pytest.LogCaptureFixture):
    made = log_attempt(caplog)
    assert made.levelname == "WARNING"
    assert made.getMessage().startswith(
        "attempt delivery=msg_1 event=e1 webhook=62685990d918fb5557f9f992 company=625bcbdcc9a8e3a86dbf041c "
        "label='COTTask create → wo_update': "
    )


def test_what_celery_says_in_a_signal_handler_is_a_line(tmp_path: Any):
    with (tmp_path / "out").open("w") as file:
        _say("worker: Warm shutdown (MainProcess)", file)
    line = json.loads((tmp_path / "out").read_text().removesuffix(os.linesep))
    assert (line["logger"], line["message"]) == ("celery.apps.worker", "worker: Warm shutdown (MainProcess)")
