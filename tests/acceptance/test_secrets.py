"""Signatures that receivers can check, and what nobody gets to see: with a real worker, receiver and Flower."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
import svix.webhooks

from tests.acceptance.conftest import Stack
from tests.lab.receiver import Receiver, Recorded, reply
from tests.lab.samples_data import read_sample
from tests.lab.worker import Worker, wait_until
from webhooks.local.processes import kill_group, spawn
from webhooks.local.servers import free_port
from webhooks.rules.encryption import new_key

EVENT = read_sample("event-task-create")
KEY = new_key()

pytestmark = pytest.mark.timeout(240)


class SignedStack:
    """A stack whose worker and commands have a key."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.settings = {**stack.settings, "WEBHOOKS_ENCRYPTION_KEY": KEY}

    def start_worker(self, *arguments: str) -> Worker:
        worker = Worker(self.stack.folder, self.settings, f"signing{len(self.stack.workers)}", *arguments)
        self.stack.workers.append(worker)
        worker.start()
        return worker

    def run(self, *arguments: str, stdin: str = "") -> str:
        argv = [sys.executable, "-m", "webhooks", *arguments]
        env = {**os.environ, **self.settings}
        done = subprocess.run(argv, env=env, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def add(self, url: str, *more: str) -> Any:
        wish = ["--company", EVENT["company"], "--trigger", "create-edit-delete-task", "--code", "signed"]
        return json.loads(self.run("add", *wish, "--url", url, "--json", *more))


@pytest.fixture
def signed(stack: Stack) -> SignedStack:
    return SignedStack(stack)


def verifies(request: Recorded, secret: str) -> bool:
    """Ask both public libraries; they must agree."""
    headers = dict(request.headers.items)
    verdicts = set()
    for library in (standardwebhooks.Webhook(secret), svix.webhooks.Webhook(secret)):
        try:
            library.verify(request.body, headers)
        except standardwebhooks.WebhookVerificationError:
            verdicts.add(False)
        else:
            verdicts.add(True)
    (verdict,) = verdicts
    return verdict


def test_each_attempt_is_signed_anew_and_carries_the_webhooks_headers(signed: SignedStack):
    with Receiver().then(reply(503)) as receiver:
        added = signed.add(receiver.url)
        signed.run("header", "set", "signed", "Authorization", "--secret", stdin="Bearer token\n")
        signed.start_worker()
        signed.stack.send_task(EVENT)
        first, second = receiver.wait_for(2, 30)
    for request in (first, second):
        assert verifies(request, added["secret"])
        assert request.headers["authorization"] == "Bearer token"
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.headers["webhook-timestamp"] < second.headers["webhook-timestamp"]
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]


@pytest.mark.slow
def test_rotation_takes_effect_within_5_s_and_overlaps(signed: SignedStack):
    with Receiver() as receiver:
        old = signed.add(receiver.url)["secret"]
        signed.start_worker()
        signed.stack.send_task(EVENT)
        assert verifies(receiver.wait_for(1, 30)[0], old)
        new = json.loads(signed.run("secret", "rotate", "signed", "--overlap", "8s", "--json"))["secret"]

        def last_verifies(secret: str) -> bool:
            count = len(receiver.requests)
            signed.stack.send_task(EVENT)
            return verifies(receiver.wait_for(count + 1)[-1], secret)

        wait_until(lambda: last_verifies(new), "signed with the new secret", 5)
        assert verifies(receiver.requests[-1], old), "the overlap has not ended"
        wait_until(lambda: not last_verifies(old), "the old one has expired", 20)
        assert verifies(receiver.requests[-1], new)


def test_worker_with_another_key_sends_nothing_unsigned(signed: SignedStack):
    with Receiver() as receiver:
        signed.add(receiver.url)
        signed.settings["WEBHOOKS_ENCRYPTION_KEY"] = new_key()
        worker = signed.start_worker()
        signed.stack.send_task(EVENT)
        (log,) = signed.stack.logs(1)
        worker.stop()
        assert receiver.requests == []
    assert (log["status"], log["attempt"]["error_kind"]) == (409, "secret_unreadable")
    assert log["response"] == "not sent: a secret of the webhook cannot be used"
    assert "was sealed with a key that WEBHOOKS_ENCRYPTION_KEY does not have" in worker.log()


#: What only receivers and readers of the logs may see, and none may see of a secret.
CANARIES = {
    "payload": "canary-payload",
    "query": "canary-query",
    "path": "canary-path",
    "response": "canary-response",
    "header": "canary-header",
}


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


def read_process_list() -> str:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    # Not the producers that tests write on a command line.
    return "\n".join(line for line in lines if " -c " not in line)


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_nothing_leaks(signed: SignedStack, level: str):
    event = {**EVENT, "data": {"_id": CANARIES["payload"], "name": CANARIES["payload"]}}
    port = free_port()
    with Receiver().then(reply(503, CANARIES["response"].encode())) as receiver:
        added = signed.add(f"{receiver.url}/{CANARIES['path']}?token={CANARIES['query']}")
        signed.run("header", "set", "signed", "X-Key", "--secret", stdin=CANARIES["header"] + "\n")
        env = {**os.environ, **signed.settings, "FLOWER_UNAUTHENTICATED_API": "true"}
        argv = [sys.executable, "-m", "celery", "-A", "webhooks", "flower", f"--port={port}"]
        with (signed.stack.folder / "flower.log").open("wb") as log:
            flower = spawn(argv, env=env, stdout=log)
        try:
            wait_until(lambda: f":{port}" in (signed.stack.folder / "flower.log").read_text(), "Flower listens")
            worker = signed.start_worker("-l", level, "-E")
            # By a producer that does not describe its arguments, once badly; and by ours.
            event_id = signed.stack.send_task(event)
            signed.stack.send_task({**event, "company": "x"})
            code = f"import json; from webhooks import deliver; deliver.delay(json.loads({json.dumps(event)!r}))"
            signed.stack.run_producer(code)
            signed.stack.logs(3)
            seen = read_process_list()
            tasks = wait_until(lambda: fetch(f"http://127.0.0.1:{port}/api/tasks"), "tasks in Flower")
            wait_until(lambda: "webhooks.send" in fetch(f"http://127.0.0.1:{port}/api/tasks"), "attempts in Flower")
            seen += fetch(f"http://127.0.0.1:{port}/api/tasks") + tasks
            seen += fetch(f"http://127.0.0.1:{port}/task/{event_id}")
            seen += fetch(f"http://127.0.0.1:{port}/worker/{worker.name}")
            worker.stop()
        finally:
            flower.send_signal(signal.SIGTERM)
            kill_group(flower)
            flower.wait()
    assert {request.headers["x-key"] for request in receiver.requests} == {CANARIES["header"]}
    assert "webhooks.deliver" in seen
    seen += worker.log() + (signed.stack.folder / "flower.log").read_text()
    for what, secret in {**CANARIES, "secret": added["secret"].removeprefix("whsec_"), "key": KEY}.items():
        found = seen.find(secret)
        assert found < 0, f"{what}: …{seen[max(0, found - 300) : found + 50]}"
