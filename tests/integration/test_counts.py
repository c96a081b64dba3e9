"""What is said of queues' lengths: by the script, `webhooks queues`, `webhooks check` and Flower."""

import json
import os
import re
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result
from flower.utils import broker
from flower.views import BaseHandler

from tests.lab.lanes import DELIVER, OPTIONS, SEND, event, put, send_plainly, worker
from tests.lab.worker import wait_until
from webhooks.cli import cli
from webhooks.local.processes import kill_group, spawn
from webhooks.local.servers import free_port, is_free
from webhooks.transport.connection import Connection
from webhooks.transport.counts import count_queues

QUEUES = [DELIVER, SEND, "celery"]


@pytest.fixture
def url(redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the URL of an empty Redis, which is the broker of the settings as well."""
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", redis_url)
    return redis_url


@pytest.fixture
def filled(url: str, redis_client: redis.Redis) -> Iterator[None]:
    """Have messages in lanes, in a list, in a list of another priority, delayed, and in a worker's hands."""
    put(url, DELIVER, "a/x", *range(5))
    put(url, DELIVER, "b/x", *range(7))
    put(url, SEND, "a/x", 1, 2, eta="2099-01-01T00:00:00")
    with worker(url, DELIVER, threads=3) as party:
        party.drain(3)
        send_plainly(url, event(), event())
        redis_client.lpush("celery\x06\x166", b"whatever")
        yield


def count(url: str, **options: Any) -> dict[str, Any]:
    with Connection(url, transport_options={**OPTIONS, **options}) as connection:
        channel: Any = connection.default_channel
        return dict(zip(QUEUES, count_queues(channel, QUEUES), strict=True))


@pytest.mark.usefixtures("filled")
def test_queues_are_counted_wherever_their_messages_are(url: str):
    found = count(url)
    assert found[DELIVER][:3] == (9, 3, 0)
    assert 0 <= found[DELIVER].oldest_s < 60
    assert found[DELIVER][4:] == (2, 0)
    assert found[SEND] == (0, 0, 2, None, 0, 0)
    assert found["celery"] == (3, 0, 0, None, 0, 0)


def test_age_of_the_oldest_message_is_that_of_all_lanes(url: str, redis_client: Any):
    put(url, DELIVER, "a/x", 1)
    put(url, DELIVER, "b/x", 1)
    redis_client.zincrby(
        f"webhooks.lane.{DELIVER}/b/x", -100 * 1_000_000, redis_client.zrange(f"webhooks.lane.{DELIVER}/b/x", 0, 0)[0]
    )
    assert 100 <= count(url)[DELIVER].oldest_s < 160


def test_counting_heeds_the_users_prefix(url: str):
    with Connection(url, transport_options={**OPTIONS, "global_keyprefix": "mine:"}) as connection:
        channel: Any = connection.default_channel
        channel.queue_declare("celery")
        channel.basic_publish(channel.prepare_message("{}"), "", "celery")
    assert count(url, global_keyprefix="mine:")["celery"].waiting == 1
    assert count(url)["celery"].waiting == 0


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


@pytest.mark.usefixtures("filled")
def test_queues_says_so_line_by_line():
    result = run("queues", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = {line["queue"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert lines.pop(DELIVER).pop("oldest_s") >= 0
    empty = {"oldest_s": None, "lanes": 0, "blocked_lanes": 0}
    assert lines == {
        SEND: {"queue": SEND, "waiting": 0, "unacked": 0, "delayed": 2, **empty},
        "celery": {"queue": "celery", "waiting": 3, "unacked": 0, "delayed": 0, **empty},
    }


@pytest.mark.usefixtures("filled")
def test_queues_as_a_table():
    header, *rows = run("queues").stdout.splitlines()
    assert header.split() == ["QUEUE", "WAITING", "UNACKED", "DELAYED", "OLDEST"]
    assert [row.split()[:4] for row in rows] == [
        [DELIVER, "9", "3", "0"],
        [SEND, "0", "0", "2"],
        ["celery", "3", "0", "0"],
    ]
    assert [row.split()[4:] for row in rows[1:]] == [["-"], ["-"]]


def test_queues_of_a_broker_that_is_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", f"redis://127.0.0.1:{free_port()}/0")
    result = run("queues", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "start it, or set WEBHOOKS_BROKER_URL" in result.stderr


# ── Flower ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_flower_is_as_what_counts_for_it_leans_on(url: str):
    """What `webhooks.web.queues` needs of Flower; another release may have changed it."""
    made = broker.Broker(url, broker_options={"global_keyprefix": "mine:"})
    assert isinstance(made, broker.RedisBase)
    assert all(issubclass(kind, broker.RedisBase) for kind in (broker.RedisSsl, broker.RedisSocket))
    assert "queues" not in vars(broker.Redis) | vars(broker.RedisSsl) | vars(broker.RedisSocket)
    assert made.broker_prefix == "mine:"
    assert (list(made.priority_steps), made.sep) == ([0, 3, 6, 9], "\x06\x16")
    assert hasattr(made.redis, "eval")
    assert hasattr(made.redis, "aclose")
    assert "Broker" in BaseHandler.get_broker.__code__.co_names


@pytest.mark.usefixtures("filled")
def test_flowers_page_and_api_count_what_waits_in_lanes(url: str, tmp_path: Path):
    port = free_port()
    argv = [sys.executable, "-m", "celery", "-A", "webhooks", "flower", f"--port={port}"]
    env = {**os.environ, "FLOWER_UNAUTHENTICATED_API": "true"}
    with (tmp_path / "flower.log").open("wb") as log:
        flower = spawn(argv, env=env, stdout=log)
    try:
        wait_until(lambda: not is_free(port), "Flower listens")

        def read(path: str) -> str:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20).read().decode()

        found = json.loads(read("/api/queues/length"))["active_queues"]
        assert {one["name"]: one["messages"] for one in found} == {DELIVER: 9, SEND: 0, "celery": 3}
        numbers = re.findall(r"<td[^>]*>(\d+)</td>", read("/broker"))
        assert ["9", "3", "9"] in [numbers[i : i + 3] for i in (0, 3, 6)]
    finally:
        kill_group(flower)
        flower.wait()
