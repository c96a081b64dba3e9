"""A worker's log as JSON, from its start to its end."""

import json

from tests.acceptance.conftest import Stack
from tests.lab.receiver import Receiver
from tests.lab.samples_data import read_sample


def test_all_lines_of_a_worker_are_json_and_an_attempts_has_its_ids(stack: Stack):
    with Receiver() as receiver:
        webhook_id = stack.add_webhook(receiver.url)
        worker = stack.start_worker(WEBHOOKS_LOG_FORMAT="json", WEBHOOKS_NO_SUCH_SETTING="1")
        event_id = stack.send_task(read_sample("event-task-create"))
        (log,) = stack.logs(1)
        worker.stop()
    lines = [json.loads(line) for line in worker.log().splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    assert {line["logger"] for line in lines} >= {"celery.worker.consumer.connection", "webhooks.worker.startup"}
    assert any("Warm shutdown" in line["message"] for line in lines)
    (attempt,) = [line for line in lines if "delivery" in line]
    ids = {"delivery": log["attempt"]["delivery_id"], "event": event_id, "webhook": str(webhook_id)}
    assert attempt.items() >= (ids | {"status": 200, "worker": worker.name, "trace_id": None}).items()
