"""The receiver for people who try things out, on real sockets."""

import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from webhooks.cli.listen_cmd import check_signature
from webhooks.local.receiver import Received, run_receiver
from webhooks.models import now
from webhooks.rules.signing import new_secret, sign

BODY = b'{"type":"COTTask"}'


def post(port: int, *, delivery_id: str = "msg_1", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/hook", BODY, {"webhook-id": delivery_id, **headers})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def signed(secret: str, at: int) -> dict[str, str]:
    return {"webhook-timestamp": str(at), "webhook-signature": sign([secret], "msg_1", at, BODY)}


def test_receiver_counts_the_requests_of_each_delivery():
    seen: list[tuple[str, int, int]] = []

    def answer(received: Received) -> tuple[int, bytes]:
        return (503, b"busy") if received.number == 1 else (200, received.body)

    with run_receiver(answer, lambda one, status: seen.append((one.delivery_id, one.number, status))) as port:
        answers = [post(port, delivery_id=name) for name in ("msg_1", "msg_2", "msg_1")]
        assert post(port, **{"Content-Length": "9" * 30})[0] == 413
    assert answers == [(503, b"busy"), (503, b"busy"), (200, BODY)]
    assert sorted(seen) == [("msg_1", 1, 503), ("msg_1", 2, 200), ("msg_2", 1, 503)]


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        ("good", "valid signature"),
        ("old", "valid signature, but the timestamp is more than 5 minutes off"),
        ("other", "INVALID signature"),
        ("unverified", "signed, not verified"),
        ("none", "not signed"),
        ("time", "INVALID: webhook-timestamp is no number"),
    ],
)
def test_verdict_of_a_signature(case: str, verdict: str):
    secret, at = new_secret(), int(now().timestamp())
    headers = signed(secret, at - 400 if case == "old" else at)
    if case == "none":
        headers = {}
    if case == "time":
        headers["webhook-timestamp"] = "²"
    received = Received("/hook", {"webhook-id": "msg_1", **headers}, BODY, 1)
    using = {"other": [new_secret()], "unverified": []}.get(case, [new_secret(), secret])
    assert check_signature(received, using) == verdict


def test_command_shows_verifies_refuses_and_forwards(tmp_path: Path):
    secret, forwarded = new_secret(), []

    def take(received: Received) -> tuple[int, bytes]:
        forwarded.append(received)
        return 202, b"taken"

    with run_receiver(take, lambda *_: None) as behind:
        argv = [
            "listen",
            "--port",
            "0",
            "--fail",
            "1",
            "--forward",
            f"http://127.0.0.1:{behind}/x",
            "--stdin",
            "--json",
        ]
        process: Any = subprocess.Popen(
            [sys.executable, "-m", "webhooks", *argv],
            cwd=tmp_path,
            # No worker is asked.
            env={**os.environ, "PYTHONUNBUFFERED": "1", "WEBHOOKS_BROKER_URL": "redis://127.0.0.1:9/0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            process.stdin.write(f"{secret}\n")
            process.stdin.flush()
            line = process.stderr.readline()
            assert line.startswith("webhooks: listening at http://127.0.0.1:")
            port = int(line.split(":")[3].split()[0])
            headers = signed(secret, int(now().timestamp()))
            answers = [post(port, **headers) for _ in range(2)]
            shown = [json.loads(process.stdout.readline()) for _ in answers]
            process.send_signal(signal.SIGINT)
            assert process.wait(40) == 0
        finally:
            process.kill()
            process.communicate()
    assert answers == [(503, b"busy, come back later"), (202, b"taken")]
    assert [(one["number"], one["status"], one["signature"]) for one in shown] == [
        (1, 503, "valid signature"),
        (2, 202, "valid signature"),
    ]
    assert shown[0]["body"] == BODY.decode()
    (one,) = forwarded
    assert (one.path, one.body, one.delivery_id) == ("/x", BODY, "msg_1")
    assert one.headers["webhook-signature"] == headers["webhook-signature"]
    assert secret not in json.dumps(shown)
