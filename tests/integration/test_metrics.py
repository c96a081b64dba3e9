"""What is told of the whole system, on real servers: by MongoDB, by Redis, and on Flower's page."""

import json
import re
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from bson import ObjectId
from click.testing import CliRunner
from pymongo.database import Database

from tests.lab.flower import FlowerThread
from tests.lab.lanes import SEND, put
from tests.lab.samples_data import read_sample
from tests.lab.servers import Servers
from tests.unit.test_metrics import samples
from webhooks.cli import cli
from webhooks.delivery import services
from webhooks.metrics.broker import read_broker
from webhooks.metrics.server import Pages, Probe
from webhooks.metrics.system import SystemReader
from webhooks.models import COTWebhook, now
from webhooks.store.deliveries import Delivery, DeliveryStore
from webhooks.store.gates import By, GateStore
from webhooks.store.mongo import open_database
from webhooks.store.overview import Overview, OverviewStore

Documents = Database[dict[str, Any]]


def add(database: Documents, name: str, age_s: float, *, held: bool = False, due_in_s: float = 0) -> None:
    """Store a delivery that was accepted some time ago."""
    ledger = DeliveryStore(database, 60, 10)
    ledger.ensure_indexes()
    ledger.add([Delivery(name, "e", ObjectId(), ObjectId(), "label", "{}", is_held=held)], now())
    fields = {"created_at": now() - timedelta(seconds=age_s)}
    if not held:
        fields["due_at"] = now() + timedelta(seconds=due_in_s)
    database["deliveries"].update_one({"_id": name}, {"$set": fields})


def test_overview_of_an_empty_database(database: Documents):
    empty = {(state, by): 0 for state in ("paused", "recovering", "stopped") for by in ("health", "operator")}
    assert OverviewStore(database).read() == Overview(0, 0, 0.0, 0.0, 0, {("open", ""): 0, **empty}, 0)


def test_overview_counts_what_is_pending(database: Documents):
    add(database, "held", 500, held=True)
    add(database, "overdue", 90, due_in_s=-60)
    add(database, "retry", 40, due_in_s=20)
    found = OverviewStore(database).read()
    assert (found.pending, found.held) == (3, 1)
    assert 500 <= found.oldest_s < 600
    assert 60 <= found.overdue_s < 90


def test_overview_counts_webhooks_by_state(database: Documents):
    ids = [ObjectId() for _ in range(4)]
    for one in ids:
        value = {**read_sample("webhook-task"), "_id": str(one), "code": str(one)}
        database["webhooks"].insert_one(COTWebhook.model_validate(value).to_bson())
    gates = GateStore(database)
    gates.pause(ids[0], By.HEALTH, "failed", 60)
    gates.pause(ids[1], By.OPERATOR, "at night")
    gates.stop(ids[2], "used up")
    database["gates"].insert_one({"_id": ObjectId(), "state": "odd", "by": 3})
    found = OverviewStore(database).read().endpoints
    assert {key: count for key, count in found.items() if count} == {
        ("open", ""): 1,
        ("paused", "health"): 1,
        ("paused", "operator"): 1,
        ("stopped", "health"): 1,
    }


def test_broker_tells_queues_lanes_and_memory(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", redis_url)
    put(redis_url, SEND, "a/x", 1, 2)
    found = read_broker(redis_url, {"x": "a/x", "y": "a/y"})
    (queue,) = [one for one in found.queues if one.queue == SEND]
    assert (queue.waiting, queue.lanes, queue.blocked_lanes) == (2, 1, 0)
    assert (found.lanes["x"].waiting, found.lanes["x"].share, found.lanes["y"].waiting) == (2, 4, 0)
    assert found.facts["evicted_keys"] >= 0


def test_a_scrape_ends_while_both_servers_hang(servers: Servers, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", servers.valkey.url)
    database = open_database(servers.mongod.url, 60)
    reader = SystemReader(OverviewStore(database))
    servers.valkey.pause()
    servers.mongod.pause()
    begun = time.monotonic()
    found = reader.read()
    assert (found.broker, found.database) == (None, None)
    assert time.monotonic() - begun < 8
    # Known for some seconds: the next scrape does not wait again.
    assert reader.read() is found
    servers.valkey.resume()
    servers.mongod.resume()
    database.client.close()


def test_port_of_a_worker_answers_everything(
    redis_url: str, database: Documents, redis_client: redis.Redis, web_settings: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", redis_url)
    services.get_services.cache_clear()
    try:
        pages = Pages(Probe(SimpleNamespace(hostname="worker@host", pool=None), has_started=True))
        status, content_type, body = pages.answer("/metrics", "text/plain")
        assert (status, content_type.partition(";")[0]) == (200, "text/plain")
        found = samples(body.decode())
        assert found["webhooks_up", "server=broker"] == found["webhooks_up", "server=mongodb"] == 1
        assert found["webhooks_worker_ready", ""] == 1
        assert found["process_open_fds", ""] > 0
        assert pages.answer("/metrics", "application/openmetrics-text; version=1.0.0")[2].endswith(b"# EOF\n")
        assert pages.answer("/live", "") == pages.answer("/ready", "") == (200, "text/plain", b"ok\n")
        assert pages.answer("/", "")[0] == 404
    finally:
        services.get_services().overview._database.client.close()
        services.get_services().attempt_runner.sender.close()
        services.get_services.cache_clear()


def test_flower_tells_the_system_after_its_own(flower: FlowerThread, redis_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", redis_url)
    answer = flower.get("/metrics")
    found = samples(answer.text)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert found["webhooks_up", "server=broker"] == found["webhooks_up", "server=mongodb"] == 1
    assert any(name.startswith("python_info") for name, _ in found)
    assert not any(name.startswith("webhooks_attempts") for name, _ in found)


def test_check_says_what_is_held_and_which_webhooks_are_not_open(
    redis_url: str, database: Documents, web_settings: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", redis_url)
    add(database, "held", 500, held=True)
    GateStore(database).pause(ObjectId(), By.HEALTH, "failed", 60)
    text = CliRunner().invoke(cli, ["check"]).stdout
    assert re.search(r"ledger +ok +1 delivery pending, 1 held; the oldest for 5\d\d s\n", text), text
    assert re.search(r"webhooks +warning +1 webhook is paused, by health\n", text), text
    report = json.loads(CliRunner().invoke(cli, ["check", "--json"]).stdout)
    assert (report["owed"], report["held"], report["dead_letters"]) == (1, 1, 0)
    assert {"state": "paused", "by": "health", "webhooks": 1} in report["endpoints"]
