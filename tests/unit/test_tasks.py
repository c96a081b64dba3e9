"""What the tasks' messages show of themselves, without a broker."""

import os
import subprocess
import sys

import pytest

CANARY = "canary-payload"

#: In a process of its own: the app reads its settings once, and later tests have other ones.
META_DEFECT = """
import json, sys
from webhooks.worker.tasks import app, write_log

def publish(producer, name, message, **options):
    print(json.dumps(message.headers))

app.amqp.__dict__["send_task_message"] = publish
payload, described = sys.argv[1:]
write_log.push_request(
    id="1", args=(payload,), kwargs={}, retries=0, called_directly=False, is_eager=False, headers={},
    delivery_info={"routing_key": "webhooks.send"}, argsrepr=described or None,
)
try:
    write_log(payload)
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("described", ["log 1", ""])
def test_task_that_meets_a_defect_is_queued_again_without_showing_its_payload(described: str):
    env = {**os.environ, "WEBHOOKS_BROKER_URL": "redis://127.0.0.1:9/0"}
    argv = [sys.executable, "-c", META_DEFECT, CANARY, described]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True)
    headers, outcome = done.stdout.splitlines()
    assert outcome == "Retry"
    assert f'"argsrepr": "{described or chr(92) + "u2026"}"' in headers
    assert CANARY not in headers + done.stderr
