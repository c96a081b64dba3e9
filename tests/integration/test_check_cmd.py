"""``webhooks send`` and ``webhooks check`` as processes of their own, with real servers, and with none."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.lab.commands import PATIENCE_S
from tests.lab.logs import make_log
from tests.lab.servers import Servers

NOTHING = "127.0.0.1:9"
EVENT = json.dumps(make_log().event.to_wire())
#: What `check` may take at most when everything is away: six seconds of its own, and a slow start of Python.
CHECK_S = 25


def test_send_queues_the_event(run_process: Any, redis_client: redis.Redis, tmp_path: Path) -> None:
    (tmp_path / "event.json").write_text(EVENT)
    done = run_process("send", "event.json")
    assert done.returncode == 0, done.stderr
    lanes: Any = redis_client.keys("webhooks.lane.webhooks.deliver/*")
    (lane,) = lanes
    messages: Any = redis_client.zrange(lane, 0, -1)
    (message,) = messages
    event_id = json.loads(message)["headers"]["id"]
    assert f"webhooks logs --event {event_id}" in done.stdout
    assert "event_id" in json.loads(run_process("send", "-", "--json", stdin=EVENT).stdout)
    assert redis_client.zcard(lane) == 2


@pytest.mark.parametrize("args", [["list"], ["logs"], ["send", "-"]], ids=lambda args: args[0])
def test_servers_that_are_away_are_one_line_without_password(run_process: Any, args: list[str]) -> None:
    away = {
        "WEBHOOKS_BROKER_URL": f"redis://:secret@{NOTHING}/0",
        "WEBHOOKS_MONGODB_URL": f"mongodb://u:secret@{NOTHING}/x",
    }
    done = run_process(*args, stdin=EVENT, **away)
    assert done.returncode == 1
    assert done.stderr.startswith("webhooks: ")
    assert done.stderr.count("\n") == 1
    assert "start it, or set WEBHOOKS_" in done.stderr
    assert "secret" not in done.stderr + done.stdout


@pytest.mark.parametrize("url", ["nonsense://u:secret@h/0", "redis://:se/cret@h:1/0"], ids=["scheme", "slash"])
@pytest.mark.parametrize("args", [["send", "-"], ["check"]], ids=lambda args: args[0])
def test_broker_url_that_cannot_be_used_is_named_without_its_password(
    run_process: Any, args: list[str], url: str
) -> None:
    done = run_process(*args, stdin=EVENT, WEBHOOKS_BROKER_URL=url)
    text = done.stdout + done.stderr
    assert done.returncode == 1
    assert "WEBHOOKS_BROKER_URL" in text
    assert "Traceback" not in text
    assert not any(part in text for part in ("secret", "cret", "se/"))


def test_check_of_servers_that_are_away(run_process: Any) -> None:
    begun = time.monotonic()
    done = run_process(
        "check",
        WEBHOOKS_BROKER_URL=f"redis://:secret@{NOTHING}/0",
        WEBHOOKS_MONGODB_URL=f"mongodb://u:secret@{NOTHING}/x",
    )
    assert time.monotonic() - begun < CHECK_S
    assert done.returncode == 1
    assert done.stdout.count("DOWN") == 2
    assert "WEBHOOKS_BROKER_URL" in done.stdout
    assert "WEBHOOKS_MONGODB_URL" in done.stdout
    assert "secret" not in done.stdout + done.stderr
    assert done.stderr == ""


def test_check_of_servers_that_hang(run_process: Any, servers: Servers) -> None:
    servers.valkey.pause()
    servers.mongod.pause()
    begun = time.monotonic()
    urls = {"WEBHOOKS_BROKER_URL": servers.valkey.url, "WEBHOOKS_MONGODB_URL": servers.mongod.url}
    done = run_process("check", **urls)
    assert time.monotonic() - begun < CHECK_S
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("DOWN") == 2


@pytest.mark.slow
def test_check_without_and_with_a_worker(
    run_process: Any, env: dict[str, str], redis_client: redis.Redis, tmp_path: Path
) -> None:
    redis_client.rpush("webhooks.send", "x", "y")
    redis_client.hset("unacked", "tag", "message")
    redis_client.zadd("webhooks.parked.webhooks.send", {"message": 1.0})
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    done = run_process("check", "--json")
    redis_client.config_set("maxmemory-policy", "noeviction")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert (report["ok"], report["broker"]["ok"], report["database"]["ok"]) == (False, True, True)
    assert report["broker"]["warnings"][0].startswith("maxmemory-policy is allkeys-lru")
    assert report["database"]["text"].startswith("MongoDB ")
    assert report["queued"] == {"webhooks.deliver": 0, "webhooks.send": 2, "celery": 0}
    assert report["unacked"] == 1
    assert report["parked"] == 1
    assert "celery -A webhooks worker" in run_process("check").stdout

    redis_client.flushdb()
    log_path = tmp_path / "worker.log"
    with log_path.open("w") as log, _worker(env, tmp_path, log):
        deadline = time.monotonic() + PATIENCE_S
        while (done := run_process("check", "--json")).returncode and time.monotonic() < deadline:
            time.sleep(0.2)
        assert done.returncode == 0, done.stdout + log_path.read_text()
        (worker,) = json.loads(done.stdout)["workers"]
        assert worker == {
            "name": "ours@host",
            "active": 0,
            "concurrency": 256,
            "queues": ["celery", "webhooks.deliver", "webhooks.send"],
            "differences": [],
        }
        text = run_process("check").stdout
        assert "worker    ok  " in text
        assert "ours@host: 0 active of 256" in text


@contextmanager
def _worker(env: dict[str, str], cwd: Path, log: Any) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "webhooks", "worker", "--hostname", "ours@host"],
        cwd=cwd, env={**os.environ, **env}, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
