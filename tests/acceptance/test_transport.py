"""The transport under real workers that are killed, stopped and cut off: every message is run, none is left anywhere.

The tasks are this file's own, so that what is judged is the transport alone.
"""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from tests.lab.servers import Server
from tests.lab.worker import wait_until
from webhooks.local import servers
from webhooks.local.processes import kill_group, spawn
from webhooks.transport.connection import AMQP, OPTION

pytestmark = pytest.mark.timeout(180)

QUEUES = ("first", "second", "third")
VISIBILITY_TIMEOUT_S = 2


def make_app(url: str, *, is_atomic: bool = True) -> Celery:
    """Make the app of this file's tasks."""
    made = Celery("transported", broker=url, amqp=AMQP, set_as_current=False)
    made.conf.update(
        broker_transport_options={
            OPTION: is_atomic,
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "socket_timeout": 2,
            "socket_connect_timeout": 2,
        },
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_default_queue=QUEUES[0],
        worker_pool="threads",
        worker_concurrency=8,
        worker_prefetch_multiplier=4,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
    )
    return made


URL = os.environ.get("TRANSPORTED_URL", "")
app = make_app(URL, is_atomic=os.environ.get("TRANSPORTED_BY") != "plain")
_client = redis.Redis.from_url(URL) if URL else None


@app.task(name="run")
def run(number: int, takes_s: float = 0) -> None:
    """Take a while, then note that this was run; the note must be there before the ack."""
    time.sleep(takes_s)
    while _client is not None:
        try:
            _client.rpush("runs", number)
        except redis.RedisError:
            time.sleep(0.1)
        else:
            return


class Workers:
    """Real workers on one Redis, and what they ran."""

    def __init__(self, url: str, folder: Path):
        self.url, self._folder = url, folder
        self.client = redis.Redis.from_url(url)
        self.app = make_app(url)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._numbers = itertools.count()

    def start(self, *arguments: str, by: str = "atomic") -> "subprocess.Popen[bytes]":
        """Start a worker; return when it is ready."""
        log = self._folder / f"worker{next(self._numbers)}.log"
        argv = [sys.executable, "-m", "celery", "-A", "tests.acceptance.test_transport", "worker", "-l", "INFO"]
        argv += ["-Q", ",".join(QUEUES), "-n", f"{log.stem}@test", "--without-mingle", "--without-gossip", *arguments]
        with log.open("ab") as output:
            process = spawn(argv, env={**os.environ, "TRANSPORTED_URL": self.url, "TRANSPORTED_BY": by}, stdout=output)
        self._processes.append(process)
        wait_until(lambda: " ready." in log.read_text(), f"ready: {log}")
        return process

    def end(self, process: "subprocess.Popen[bytes]", number: signal.Signals = signal.SIGKILL) -> None:
        """End one, by killing it or in order."""
        process.send_signal(number)
        process.wait(30)
        kill_group(process)

    def log(self) -> str:
        """Return what all of them wrote."""
        return "\n".join(path.read_text() for path in sorted(self._folder.glob("worker*.log")))

    def send(self, number: int, takes_s: float = 0, **options: Any) -> None:
        """Publish a task."""
        options.setdefault("queue", QUEUES[number % 3])
        self.app.send_task("run", [number, takes_s], **options)

    def runs(self) -> Counter[int]:
        """Count how often each was run."""
        return Counter(int(number) for number in self.client.lrange("runs", 0, -1))  # pyright: ignore[reportGeneralTypeIssues]

    def wait_for(self, count: int, timeout_s: float = 30) -> Counter[int]:
        """Wait until so many different ones were run and nothing is left in Redis; return how often each was."""
        missing = wait_until(lambda: len(self.runs()) >= count or None, f"{count} run", timeout_s)
        assert missing
        wait_until(lambda: not self.left(), f"nothing left, but {self.left()}", timeout_s)
        runs = self.runs()
        assert sorted(runs) == list(range(count))
        return runs

    def left(self) -> dict[str, int]:
        """Say where messages are left."""
        counts = {queue: self.client.llen(queue) for queue in QUEUES}
        counts |= {f"parked {queue}": self.client.zcard(f"webhooks.parked.{queue}") for queue in QUEUES}
        counts |= {"unacked": self.client.hlen("unacked"), "index": self.client.zcard("unacked_index")}
        return {name: count for name, count in counts.items() if count}  # pyright: ignore[reportReturnType]

    def close(self) -> None:
        """End all."""
        for process in self._processes:
            kill_group(process)
            process.wait()


@pytest.fixture
def workers(redis_url: str, redis_client: Any, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(redis_url, tmp_path)
    yield made
    made.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A Redis to stop, kill and pause."""
    made = Server("valkey", servers.valkey_command, servers.valkey_url, tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.discard()


@pytest.fixture
def fragile(server: Server, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(server.url, tmp_path)
    yield made
    made.close()


class Load:
    """Publishes steadily, from a thread, until it is told to stop."""

    def __init__(self, send: Callable[[int], None], pause_s: float):
        self._send, self._pause_s = send, pause_s
        self._is_over = threading.Event()
        self.count = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._is_over.wait(self._pause_s):
            self._send(self.count)
            self.count += 1

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def rss_mb(process: "subprocess.Popen[bytes]") -> float:
    [line] = [line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


@pytest.mark.slow
def test_worker_that_is_killed_ten_times_under_load_loses_nothing(workers: Workers):
    def send(number: int) -> None:
        workers.send(number, random.random() / 50, countdown=0.5 if number % 3 == 0 else None)

    kills = 10
    with Load(send, 0.004) as load:
        for _ in range(kills):
            process = workers.start()
            time.sleep(0.2 + random.random() / 2)
            workers.end(process)
    workers.start()
    workers.start()
    runs = workers.wait_for(load.count)
    assert load.count > 500
    # A repeat is a task that was run and not acked: at most what each killed worker had in hand.
    assert runs.total() - load.count <= kills * 32


def test_prefork_worker_that_is_killed_loses_nothing(workers: Workers):
    for number in range(200):
        workers.send(number, 0.02)
    process = workers.start("-P", "prefork", "-c", "2")
    wait_until(lambda: len(workers.runs()) > 20, "running")
    workers.end(process)
    assert len(workers.runs()) < 200
    workers.start("-P", "prefork", "-c", "2")
    workers.wait_for(200)


def test_worker_that_stops_finishes_and_gives_the_rest_back_at_once(workers: Workers):
    for number in range(40):
        workers.send(number, 0.3)
    process = workers.start()
    wait_until(lambda: len(workers.runs()) >= 8, "running")
    workers.end(process, signal.SIGTERM)
    done = len(workers.runs())
    assert done < 40
    assert (workers.client.hlen("unacked"), sum(workers.left().values())) == (0, 40 - done)
    workers.start()
    assert workers.wait_for(40).total() == 40


def test_plain_worker_takes_over_the_queue_and_hands_it_back(workers: Workers):
    for number in range(100):
        workers.send(number, 0.05)
    plain = workers.start(by="plain")
    wait_until(lambda: len(workers.runs()) > 20, "running")
    workers.end(plain, signal.SIGTERM)
    workers.start()
    workers.wait_for(100)


def test_waiting_costs_a_worker_neither_memory_nor_prefetch(workers: Workers):
    # 20,000 of a bare service, so that each passes through the worker, which parks it.
    bare = make_app(workers.url, is_atomic=False)
    eta = datetime.now(UTC) + timedelta(hours=1)
    bare.send_task("run", [0], eta=eta, queue="first")
    [raw] = workers.client.lrange("first", 0, -1)  # pyright: ignore[reportGeneralTypeIssues]
    workers.client.delete("first")
    message = json.loads(raw)
    process = workers.start()
    workers.send(0)
    wait_until(lambda: workers.runs()[0], "warm")
    before = rss_mb(process)
    with workers.client.pipeline() as pipe:
        for number in range(20_000):
            message["headers"]["id"] = message["properties"]["delivery_tag"] = f"waiting-{number}"
            pipe.lpush("first", json.dumps(message))
        pipe.execute()
    # What need not wait, in another queue and behind them in the same one.
    sent_at = time.monotonic()
    workers.send(1, queue="second")
    wait_until(lambda: workers.runs()[1], "run meanwhile", 5)
    meanwhile_s = time.monotonic() - sent_at
    wait_until(lambda: workers.client.zcard("webhooks.parked.first") == 20_000, "parked")
    workers.send(2, queue="first")
    wait_until(lambda: workers.runs()[2], "run")
    wait_until(lambda: workers.client.hlen("unacked") == 0, "nothing held")
    assert meanwhile_s < 2
    assert rss_mb(process) - before < 15


def test_worker_lives_through_restarts_of_redis_under_load(fragile: Workers, server: Server):
    process = fragile.start()

    def send(number: int) -> None:
        while True:
            try:
                fragile.send(number, 0.02, retry=False)
            except Exception:
                time.sleep(0.1)
            else:
                return

    with Load(send, 0.005) as load:
        for _ in range(2):
            time.sleep(1)
            server.stop()  # in order: what it accepted is on the disk
            server.start()
        time.sleep(0.5)
    fragile.wait_for(load.count)
    assert process.poll() is None
    assert "NoneType" not in fragile.log()
    assert "Unrecoverable" not in fragile.log()


def test_worker_lives_through_a_pause_of_redis(fragile: Workers, server: Server):
    process = fragile.start()
    for number in range(100):
        fragile.send(number, 0.05)
    wait_until(lambda: len(fragile.runs()) > 10, "running")
    server.pause()
    time.sleep(3)
    server.resume()
    fragile.wait_for(100)
    assert process.poll() is None


def test_remote_control_works(workers: Workers):
    workers.start()
    assert workers.app.control.ping(timeout=5, limit=1) == [{"worker0@test": {"ok": "pong"}}]
    assert [queue["name"] for queue in workers.app.control.inspect(timeout=1).active_queues()["worker0@test"]] == [
        *QUEUES
    ]
