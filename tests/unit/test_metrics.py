"""The metrics, and the HTTP port that serves them, without servers."""

import logging
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.unit.test_meters import log
from webhooks.delivery.meters import Fault, Meters
from webhooks.delivery.stopping import stopping
from webhooks.local.servers import free_port
from webhooks.metrics import server
from webhooks.metrics.broker import BrokerOverview, QueueLength
from webhooks.metrics.families import SYSTEM, WORKER, WorkerState, make_registry, system_families, worker_families
from webhooks.metrics.server import Probe, serve
from webhooks.metrics.system import System
from webhooks.store.overview import Overview
from webhooks.transport.messages import LaneState
from webhooks.worker.pool import BatchPool

STATE = WorkerState("worker@host", is_ready=True, in_flight=3, limit=256)
FACTS = {"used_memory": 1000, "maxmemory": 0, "evicted_keys": 7, "maxmemory_policy": "allkeys-lru"}
BROKER = BrokerOverview([QueueLength("webhooks.send", 5, 2, 1, 3.5, 4, 1)], {"w1": LaneState(5, 2, 4, 3.5)}, FACTS)
DATABASE = Overview(9, 4, 100.0, 12.0, 2, {("open", ""): 5, ("paused", "health"): 1}, 3)


def samples(text: str, parser: Any = parse) -> dict[tuple[str, str], float]:
    """Return the values by name and labels."""
    return {
        (one.name, ",".join(f"{name}={value}" for name, value in sorted(one.labels.items()))): one.value
        for family in parser(text)
        for one in family.samples
    }


def read_worker(meters: Meters) -> dict[tuple[str, str], float]:
    return samples(generate_latest(make_registry(lambda: worker_families(meters, STATE))).decode())


def read_system(broker: BrokerOverview | None, database: Overview | None) -> dict[tuple[str, str], float]:
    return samples(generate_latest(make_registry(lambda: system_families(System(broker, database)))).decode())


def test_metrics_of_a_worker():
    meters = Meters()
    meters.is_on = True
    meters.count_attempts([(log(total_ms=30.0), None), (log(409, error_kind="timeout"), None)], None)
    meters.count_fault(Fault.LOG_LATE)
    found = read_worker(meters)
    assert found["webhooks_worker_info", "version=0.1.0,worker=worker@host"] == 1
    assert found["webhooks_attempts_total", "error_kind=none,outcome=success,status_class=2xx"] == 1
    assert found["webhooks_attempts_total", "error_kind=timeout,outcome=failed,status_class=none"] == 1
    assert found["webhooks_attempt_duration_seconds_bucket", "le=0.025,outcome=success"] == 0
    assert found["webhooks_attempt_duration_seconds_bucket", "le=0.05,outcome=success"] == 1
    assert found["webhooks_attempt_duration_seconds_bucket", "le=+Inf,outcome=success"] == 1
    assert found["webhooks_attempt_duration_seconds_sum", "outcome=success"] == pytest.approx(0.03)
    assert found["webhooks_attempts_in_flight", ""] == 3
    assert found["webhooks_faults_total", "kind=log_late"] == 1
    assert {name for name, _ in found} >= {name for name, metric in WORKER.items() if metric.kind != "histogram"}


def test_counters_are_there_before_the_first_thing_to_count():
    found = read_worker(Meters())
    assert {found["webhooks_faults_total", f"kind={kind}"] for kind in Fault} == {0}
    assert found["webhooks_events_total", "result=matched"] == 0
    assert found["webhooks_attempts_total", "error_kind=none,outcome=success,status_class=2xx"] == 0
    assert found["webhooks_webhook_attempts_total", "outcome=failed,webhook=other"] == 0


def test_metrics_of_the_system():
    found = read_system(BROKER, DATABASE)
    assert {name for name, _ in found} == set(SYSTEM)
    assert found["webhooks_up", "server=broker"] == found["webhooks_up", "server=mongodb"] == 1
    assert found["webhooks_queue_messages", "queue=webhooks.send,state=delayed"] == 1
    assert found["webhooks_queue_oldest_seconds", "queue=webhooks.send"] == 3.5
    assert found["webhooks_webhook_window", "webhook=w1"] == 4
    assert found["webhooks_redis_may_evict", ""] == 1
    assert found["webhooks_endpoints", "by=health,state=paused"] == 1
    assert found["webhooks_overdue_seconds", ""] == 12


def test_metrics_of_a_server_that_is_away_are_absent():
    assert read_system(None, None) == {("webhooks_up", "server=broker"): 0, ("webhooks_up", "server=mongodb"): 0}
    assert not any(name.startswith("webhooks_queue") for name, _ in read_system(None, DATABASE))


def test_metrics_that_rabbitmq_does_not_tell_are_absent():
    found = read_system(BrokerOverview([QueueLength("celery", 5)]), DATABASE)
    assert found["webhooks_queue_messages", "queue=celery,state=waiting"] == 5
    assert {labels for name, labels in found if name.startswith("webhooks_queue")} == {"queue=celery,state=waiting"}


def test_metrics_are_openmetrics_too():
    registry = make_registry(lambda: [*worker_families(Meters(), STATE), *system_families(System(BROKER, DATABASE))])
    text = generate_openmetrics(registry).decode()
    assert samples(text, parse_openmetrics)["webhooks_dead_letters", ""] == 3


# ── The port ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def port() -> Iterator[int]:
    """A port at which a server says which path it was asked for."""
    made = serve("127.0.0.1", [free_port()], lambda path, accept: (HTTPStatus.OK, "text/plain", path.encode()))
    assert made is not None
    yield made.server_port
    made.shutdown()
    made.server_close()


def get(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return answer.read().decode()


def test_second_worker_takes_the_next_port_of_a_range(port: int, caplog: pytest.LogCaptureFixture):
    other = free_port()
    second = serve("127.0.0.1", [port, other], lambda path, accept: (HTTPStatus.OK, "text/plain", b"second"))
    assert second is not None
    try:
        assert (get(port), get(second.server_port)) == ("/metrics", "second")
        assert second.server_port == other
    finally:
        second.shutdown()
        second.server_close()


def test_worker_whose_port_is_taken_goes_on_and_says_so_in_one_line(port: int, caplog: pytest.LogCaptureFixture):
    assert serve("127.0.0.1", [port], lambda path, accept: (HTTPStatus.OK, "text/plain", b"")) is None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"not served at 127.0.0.1, {port}: Address already in use" in record.getMessage()
    assert "WEBHOOKS_METRICS_PORT" in record.getMessage()


def test_port_is_opened_without_a_name_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("looked up"))
    made = serve("::1", [free_port()], lambda path, accept: (HTTPStatus.OK, "text/plain", b"ok"))
    assert made is not None
    made.shutdown()
    made.server_close()


def test_clients_that_send_nothing_do_not_keep_others_out_for_long(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server._Handler, "timeout", 0.2)
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(server._MOST_CLIENTS)]
    try:
        for one in silent:  # closed by the server
            one.settimeout(30)
            assert one.recv(1) == b""
        assert get(port, "/live?a=b") == "/live"
    finally:
        for one in silent:
            one.close()


def test_an_error_is_an_answer_without_its_text(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def fail(path: str, accept: str) -> Any:
        raise ValueError("payload")

    made = serve("127.0.0.1", [free_port()], fail)
    assert made is not None
    try:
        with pytest.raises(urllib.error.HTTPError, match="500"):
            get(made.server_port)
    finally:
        made.shutdown()
        made.server_close()
    assert "ValueError" in caplog.text
    assert "payload" not in caplog.text.replace('raise ValueError("payload")', "")


# ── Probes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def renewals(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made = [SimpleNamespace(name="MongoDB", is_good=True), SimpleNamespace(name="Redis", is_good=True)]
    monkeypatch.setattr(server, "renewals", made)
    return made


def test_worker_is_ready_once_it_takes_messages(renewals: list[Any]):
    probe = Probe(SimpleNamespace(), has_started=False)
    assert probe.find_obstacles() == ["it has not taken messages yet: the broker may be away"]
    probe.has_started = True
    assert probe.find_obstacles() == []


def test_worker_whose_server_is_away_is_alive_and_not_ready(renewals: list[Any]):
    probe = Probe(SimpleNamespace(), has_started=True)
    renewals[0].is_good = False
    assert probe.find_obstacles() == ["its lease in MongoDB is not renewed"]
    assert probe.find_deadlocks() == []


def test_worker_that_stops_is_not_ready(renewals: list[Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stopping, "is_set", lambda: True)
    assert Probe(SimpleNamespace(), has_started=True).find_obstacles() == ["it is stopping"]


def test_worker_with_a_dead_thread_is_neither_alive_nor_ready(renewals: list[Any]):
    pool = BatchPool(2)
    probe = Probe(SimpleNamespace(pool=pool), has_started=True)
    assert probe.find_obstacles() == [], "its threads have not been started"
    pool._recorder = threading.Thread(target=int, name="pool-record")
    pool._recorder.start()
    pool._recorder.join()
    assert probe.find_deadlocks() == probe.find_obstacles() == ["the thread pool-record has ended"]
