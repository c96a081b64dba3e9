"""The worker's pool: every attempt is a Celery task, made and recorded many at a time."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest
import redis
from celery import Celery

from tests.acceptance.conftest import RETRY_DELAY_S, Stack, body_of
from tests.lab.receiver import Receiver, hang, reply
from tests.lab.samples_data import read_sample
from tests.lab.worker import Worker, wait_until

EVENT = read_sample("event-task-create")


def produce_many(stack: Stack, count: int) -> list[str]:
    """Hand events in at one time, from a service that has this package; return their ids."""
    code = f"""
import json
from webhooks import deliver
event = json.loads({body_of(EVENT).decode()!r})
print(json.dumps(deliver.delay_many({{**event, "data": {{**event["data"], "n": n}}}} for n in range({count}))))
"""
    return json.loads(stack.run_producer(code))


def wait_until_settled(stack: Stack, client: redis.Redis) -> None:
    wait_until(lambda: client.hlen("unacked") == 0, "all acked")
    assert stack.database["deliveries"].count_documents({}) == 0


def test_events_are_attempted_in_place_each_once_with_a_log_and_nothing_left(stack: Stack, redis_client: redis.Redis):
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        worker = stack.start_worker()
        ids = produce_many(stack, 250)
        logs = stack.logs(250)
        wait_until_settled(stack, redis_client)
        got = [request.json()["data"]["n"] for request in receiver.requests]
    assert sorted(got) == list(range(250))
    assert sorted(log["attempt"]["event_id"] for log in logs) == sorted(ids)
    assert {(log["status"], log["attempt"]["outcome"]) for log in logs} == {(200, "success")}
    assert worker.log().count("attempt delivery=") == 250


def test_failed_first_attempt_comes_back_by_celerys_countdown(stack: Stack, redis_client: redis.Redis):
    with Receiver() as receiver:
        receiver.then(reply(500), reply(200))
        stack.add_webhook(receiver.url)
        stack.start_worker()
        (event_id,) = produce_many(stack, 1)
        first, second = sorted(stack.logs(2, RETRY_DELAY_S + 30), key=lambda log: log["retry"])
        wait_until_settled(stack, redis_client)
        ids = {request.headers["webhook-id"] for request in receiver.requests}
    assert (first["status"], first["retry"], second["status"], second["retry"]) == (500, 0, 200, 1)
    assert {first["attempt"]["event_id"], second["attempt"]["event_id"]} == {event_id}
    assert ids == {first["attempt"]["delivery_id"]} == {second["attempt"]["delivery_id"]}
    assert (second["createdAt"] - first["createdAt"]).total_seconds() >= RETRY_DELAY_S


def start_worker(stack: Stack, *options: str, **settings: str) -> Worker:
    """Start a worker with options of Celery's."""
    worker = Worker(stack.folder, {**stack.settings, **settings}, "worker", *options)
    stack.workers.append(worker)
    worker.start()
    return worker


class CountingReceiver:
    """Answers after a while, and knows how many requests it had at one time."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._now = self.most_at_once = 0

    def __enter__(self) -> "CountingReceiver":
        counting = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                counting.change(1)
                self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(counting._delay_s)
                counting.change(-1)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None: ...  # pyright: ignore[reportIncompatibleMethodOverride]

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def change(self, by: int) -> None:
        with self._lock:
            self._now += by
            self.most_at_once = max(self.most_at_once, self._now)


def celery_app(stack: Stack) -> Celery:
    return Celery("watcher", broker=stack.redis_url, set_as_current=False)


@contextmanager
def captured_events(stack: Stack) -> Iterator[list[dict[str, Any]]]:
    """Collect Celery's task events, as Flower does."""
    found: list[dict[str, Any]] = []
    with celery_app(stack).connection_for_read() as connection:
        receiver = celery_app(stack).events.Receiver(connection, handlers={"*": found.append})
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        thread.start()
        time.sleep(1)  # until it has subscribed
        try:
            yield found
        finally:
            receiver.should_stop = True
            thread.join()


def of_task(events: list[dict[str, Any]], task_id: str) -> list[dict[str, Any]]:
    return [event for event in events if event.get("uuid") == task_id]


def test_each_attempt_is_a_task_with_events_of_its_own(stack: Stack):
    with Receiver() as receiver, captured_events(stack) as events:
        receiver.then(reply(503), reply(200))
        stack.add_webhook(receiver.url)
        start_worker(stack, "--task-events")
        (event_id,) = produce_many(stack, 1)
        first, _ = stack.logs(2, RETRY_DELAY_S + 30)
        delivery_id = first["attempt"]["delivery_id"]
        kinds = ["task-received", "task-retried", "task-received", "task-succeeded"]
        wait_until(
            lambda: [event["type"] for event in of_task(events, delivery_id)] == kinds,
            "the events of both attempts",
        )
    received, retried, again, succeeded = of_task(events, delivery_id)
    assert received["name"] == again["name"] == "webhooks.send"
    assert received["parent_id"] == received["root_id"] == event_id
    assert (received["retries"], again["retries"]) == (0, 1)
    # What Flower's columns show: no exception's repr.
    assert retried["exception"] == retried["result"]
    assert retried["exception"].startswith("503 Service Unavailable in ")
    assert "retry 0, next at " in retried["exception"]
    assert "200 OK in " in succeeded["result"]
    assert 0 < succeeded["runtime"] < 5
    assert [event["type"] for event in of_task(events, event_id)] == ["task-received", "task-succeeded"]
    assert not any("answers" in str(event) for event in events), "payload"


def test_attempt_that_takes_long_is_said_to_have_started_and_is_seen_by_inspect(stack: Stack):
    with Receiver(default=reply(200, delay_s=14)) as receiver, captured_events(stack) as events:
        stack.add_webhook(receiver.url)
        start_worker(stack, "--task-events")
        (event_id,) = produce_many(stack, 1)
        receiver.wait_for(1)
        inspect = celery_app(stack).control.inspect(timeout=1.5)
        active = wait_until(lambda: next(iter((inspect.active() or {}).values()), []), "seen by inspect")
        (stats,) = cast("dict[str, Any]", inspect.stats()).values()
        (log,) = stack.logs(1)
        delivery_id = log["attempt"]["delivery_id"]
        wait_until(lambda: "task-succeeded" in [e["type"] for e in of_task(events, delivery_id)], "its end")
    assert {task["id"] for task in active} == {event_id, delivery_id}
    assert not any("answers" in str(task) for task in active), "payload"
    assert stats["pool"]["in-flight"] == 1
    assert stats["pool"]["max-concurrency"] == 8
    kinds = ["task-received", "task-started", "task-succeeded"]
    assert [event["type"] for event in of_task(events, delivery_id)] == kinds
    assert of_task(events, delivery_id)[-1]["runtime"] >= 14


def test_last_failed_attempt_reads_in_words(stack: Stack):
    with Receiver(default=reply(404)) as receiver, captured_events(stack) as events:
        stack.add_webhook(receiver.url)
        start_worker(stack, "--task-events", WEBHOOKS_MAX_RETRIES="0")
        produce_many(stack, 1)
        (log,) = stack.logs(1)
        delivery_id = log["attempt"]["delivery_id"]
        wait_until(lambda: "task-failed" in [e["type"] for e in of_task(events, delivery_id)], "its end")
    failed = of_task(events, delivery_id)[-1]
    assert failed["exception"] == failed["result"]
    assert failed["exception"].startswith("404 Not Found in ")
    assert failed["exception"].endswith("retry 0, was the last")
    assert not failed["traceback"]


SIGNALS = """
from collections import Counter
from celery import signals
from webhooks.worker.tasks import SendTask
seen = Counter()
def note(name):
    def on_signal(sender=None, **_):
        task = getattr(sender, "name", sender)
        seen[f"{name} {task}"] += 1
        print("SEEN", name, task, flush=True)
    return on_signal
for name in ("task_prerun", "task_postrun", "task_success", "task_retry", "task_failure", "before_task_publish"):
    getattr(signals, name).connect(note(name), weak=False)
for name in ("on_success", "on_retry", "on_failure"):
    def hook(self, *args, name=name, was=getattr(SendTask, name), **kwargs):
        print("SEEN", name, flush=True)
        return was(self, *args, **kwargs)
    setattr(SendTask, name, hook)
"""


def test_signals_and_hooks_of_celery_fire_for_each_attempt(stack: Stack):
    with Receiver() as receiver:
        receiver.then(reply(503), reply(200))
        stack.add_webhook(receiver.url)
        (stack.folder / "signals_seen.py").write_text(SIGNALS)
        path = f"{stack.folder}:{os.environ.get('PYTHONPATH', '')}"
        worker = start_worker(stack, "--include", "signals_seen", PYTHONPATH=path)
        produce_many(stack, 1)
        stack.logs(2, RETRY_DELAY_S + 30)
        wait_until(lambda: worker.log().count("SEEN task_postrun webhooks.send") == 2, "the end of both attempts")
        wait_until(lambda: "SEEN task_success webhooks.send" in worker.log(), "the last signal")
    seen = Counter(line.partition("SEEN ")[2] for line in worker.log().splitlines() if "SEEN " in line)
    assert seen == {
        "task_prerun webhooks.deliver": 1,
        "task_success webhooks.deliver": 1,
        "task_postrun webhooks.deliver": 1,
        "task_prerun webhooks.send": 2,
        "task_postrun webhooks.send": 2,
        "task_retry webhooks.send": 1,
        "task_success webhooks.send": 1,
        "before_task_publish webhooks.send": 1,
        "on_retry": 1,
        "on_success": 1,
    }


def test_revoked_delivery_is_given_up_on_record_and_not_sent_again(stack: Stack):
    with Receiver(default=reply(503)) as receiver:
        stack.add_webhook(receiver.url)
        start_worker(stack, WEBHOOKS_RETRY_DELAY_S="12")
        produce_many(stack, 1)
        (first,) = stack.logs(1)
        celery_app(stack).control.revoke(first["attempt"]["delivery_id"], reply=True, timeout=2)
        _, second = stack.logs(2)
        wait_until(lambda: stack.database["deliveries"].count_documents({}) == 0, "nothing owed")
        assert len(receiver.requests) == 1
    assert (second["status"], second["retry"], second["attempt"]["error_kind"]) == (409, 1, "skipped")


def test_worker_takes_as_many_as_it_is_told(stack: Stack):
    with CountingReceiver(0.3) as receiver:
        for _ in range(6):
            stack.add_webhook(receiver.url)
        start_worker(stack, "-c", "2")
        produce_many(stack, 3)
        stack.logs(18, 60)
    assert receiver.most_at_once <= 2


@pytest.mark.slow
def test_pool_can_be_made_larger_while_it_works(stack: Stack):
    with CountingReceiver(0.3) as receiver:
        for _ in range(6):
            stack.add_webhook(receiver.url)
        start_worker(stack, "-c", "1")
        celery_app(stack).control.pool_grow(3, reply=True, timeout=5)
        produce_many(stack, 4)
        stack.logs(24, 60)
    assert 2 <= receiver.most_at_once <= 4


@pytest.mark.slow
def test_autoscale_grows_the_pool_to_its_bound(stack: Stack):
    with CountingReceiver(0.5) as receiver:
        for _ in range(6):
            stack.add_webhook(receiver.url)
        start_worker(stack, "--autoscale", "3,1")
        produce_many(stack, 6)
        stack.logs(36, 60)
    assert 2 <= receiver.most_at_once <= 3


def test_solo_pool_carries_out_the_same_steps(stack: Stack):
    with Receiver() as receiver:
        receiver.then(reply(503), reply(200))
        stack.add_webhook(receiver.url)
        start_worker(stack, "-P", "solo")
        produce_many(stack, 2)
        logs = stack.logs(3, RETRY_DELAY_S + 30)
    assert sorted((log["status"], log["retry"]) for log in logs) == [(200, 0), (200, 1), (503, 0)]


def test_other_pools_are_refused_in_one_line(stack: Stack):
    argv = [sys.executable, "-m", "celery", "-A", "webhooks", "worker", "-P", "threads"]
    env = {**os.environ, **stack.settings}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "this worker has a pool of its own" in done.stderr
    assert "Traceback" not in done.stderr


def test_endpoint_that_hangs_holds_no_more_than_its_share_and_the_rest_waits_in_its_lane(
    stack: Stack, redis_client: redis.Redis
):
    with Receiver(default=hang()) as receiver:
        stack.add_webhook(receiver.url)
        stack.start_worker()
        produce_many(stack, 30)
        # Four are let go before anything is known of it; the messages of the others are queued, and the events acked.
        wait_until(lambda: stack.database["deliveries"].count_documents({}) == 30, "all in the ledger")
        wait_until(lambda: redis_client.hlen("unacked") <= 4, "no more than its share in hand")
        assert len(receiver.requests) <= 4
        assert stack.database["deliveries"].count_documents({"claim": {"$exists": True}}) <= 4


def test_worker_that_is_stopped_ends_what_it_began_and_gives_the_rest_back(stack: Stack, redis_client: redis.Redis):
    with Receiver(default=reply(200, delay_s=0.5)) as receiver:
        stack.add_webhook(receiver.url)
        worker = stack.start_worker()
        produce_many(stack, 200)
        receiver.wait_for(4)
        worker.stop()
        assert redis_client.hlen("unacked") == 0
        assert stack.database["webhooklogs"].count_documents({}) == len(receiver.requests)
        assert stack.database["deliveries"].count_documents({"claim": {"$exists": True}}) == 0
        stack.start_worker()
        stack.logs(200, 60)
        wait_until_settled(stack, redis_client)
        ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert len(ids) == len(set(ids)) == 200


def test_bad_event_among_many_is_named_by_its_place_and_none_is_queued(stack: Stack, redis_client: redis.Redis):
    code = f"""
import json
from webhooks import deliver
from webhooks.errors import InvalidEvent
event = json.loads({body_of(EVENT).decode()!r})
try:
    deliver.delay_many([event, {{**event, "company": "x"}}])
except InvalidEvent as error:
    print(error)
"""
    assert stack.run_producer(code).startswith("event 1 of those given: invalid event: company: ")
    assert redis_client.keys("*webhooks.lane*") == []


def test_message_of_many_is_the_message_of_one(stack: Stack, redis_client: redis.Redis):
    # What this package writes by itself must stay what Celery's `delay` writes.
    code = f"""
import json
from webhooks import deliver
event = json.loads({body_of(EVENT).decode()!r})
print(json.dumps([deliver.delay(event).id, *deliver.delay_many([event])]))
"""
    ids = json.loads(stack.run_producer(code))
    [lane] = redis_client.keys("webhooks.lane.webhooks.deliver/*")
    messages: list[Any] = [json.loads(text) for text in cast("list[bytes]", redis_client.zrange(lane, 0, -1))]
    for message, event_id in zip(messages, ids, strict=True):
        assert message["headers"].pop("id") == event_id
        assert message["properties"].pop("delivery_tag")
    assert messages[0] == messages[1]
