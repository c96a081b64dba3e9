"""No-op tasks through Celery's own Redis transport and through ours, in one run: `python -m tests.bench.transport`.

Ours both without lanes and with: 150 webhooks in 50 companies, bounded.

Both in a real worker with threads. Figures of a shared machine mean something only beside each other.
"""

import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from tests.lab.servers import Server
from tests.lab.worker import wait_until
from webhooks.local import servers
from webhooks.local.processes import kill_group, spawn
from webhooks.transport.connection import AMQP, OPTION
from webhooks.transport.headers import LANE_HEADER
from webhooks.transport.lanes import LANES_OPTION, Lanes

URL = os.environ.get("BENCH_BROKER_URL", "")
QUEUES = ("first", "second", "third")
#: As big as a delivery's message.
PAYLOAD = "x" * 500
MESSAGES = int(os.environ.get("BENCH_MESSAGES", "10000"))
#: One after another, so that each finds the worker idle.
SINGLE_MESSAGES = 60


TRANSPORTS: tuple[str, ...] = ("plain", "atomic", "lanes")


def no_lane(message: object) -> str:
    """Have what names no lane stand in that of all others."""
    return "-"


def make_app(name: str, url: str) -> Celery:
    """Make an app on one of `TRANSPORTS`."""
    lanes = Lanes(queues=dict.fromkeys(QUEUES, True), joined={}, lane_of="tests.bench.transport:no_lane")
    made = Celery("bench", broker=url, amqp=AMQP, set_as_current=False)
    made.conf.update(
        broker_transport_options={
            OPTION: name != "plain",
            "visibility_timeout": 60,
            **({LANES_OPTION: lanes} if name == "lanes" else {}),
        },
        task_acks_late=True,
        task_ignore_result=True,
        task_default_queue=QUEUES[0],
        worker_pool="threads",
        worker_concurrency=16,
        worker_prefetch_multiplier=2,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
    )
    return made


app = make_app(os.environ.get("BENCH_TRANSPORT", "plain"), URL)
_runs = itertools.count(1)
_client = redis.Redis.from_url(URL) if URL else None
_started_at = 0.0


@app.task(name="noop")
def noop(payload: str) -> None:
    """Do nothing; note when the first and the last of all began."""
    global _started_at  # noqa: PLW0603 - one process, and the first run alone writes it
    run = next(_runs)
    if run == 1:
        _started_at = time.monotonic()
    if run == MESSAGES and _client is not None:
        _client.set("took_s", time.monotonic() - _started_at)


@app.task(name="tell")
def tell(sent_at: float) -> None:
    """Note how long ago this was sent."""
    if _client is not None:
        _client.rpush("latencies", time.time() - sent_at)


def measure(name: str, url: str) -> dict[str, float]:
    """Run one worker on one transport."""
    client = redis.Redis.from_url(url)
    client.flushall()
    producer, bare = make_app(name, url), make_app("plain", url)
    for number in range(MESSAGES):
        headers = {LANE_HEADER: f"company{number % 50}/webhook{number % 150}"}
        producer.send_task("noop", [PAYLOAD], queue=QUEUES[number % 3], headers=headers)
    env = {**os.environ, "BENCH_TRANSPORT": name, "BENCH_BROKER_URL": url}
    argv = [sys.executable, "-m", "celery", "-A", "tests.bench.transport", "worker", "-l", "WARNING"]
    argv += ["-Q", ",".join(QUEUES), "--without-mingle", "--without-gossip"]
    with tempfile.TemporaryFile() as log:
        worker = spawn(argv, env=env, stdout=log)
        try:
            took_s = float(wait_until(lambda: client.get("took_s"), "all done", 120))  # pyright: ignore[reportArgumentType]
            figures = {"tasks per second": MESSAGES / took_s}
            for who, sender, pause_s in (
                ("our producer", producer, 0.005),
                ("a bare producer", bare, 0.005),
                ("our producer, after a pause", producer, 0.15),
                ("a bare producer, after a pause", bare, 0.15),
            ):
                figures[f"ms to start, p50: {who}"] = latency_ms(client, sender, pause_s)
            before = cpu_s(worker)
            time.sleep(3)
            figures["% of a core, idle"] = (cpu_s(worker) - before) / 3 * 100
        finally:
            kill_group(worker)
            worker.wait()
    return figures


def published_per_s(url: str) -> dict[str, float]:
    """Publish through both in turns, as what else the machine does changes by the second."""
    took_s: dict[str, float] = dict.fromkeys(TRANSPORTS, 0.0)
    apps = {name: make_app(name, url) for name in took_s}
    turns, messages = 8, 200
    for turn in range(turns + 1):
        for name, sender in apps.items():
            started_at = time.monotonic()
            for _ in range(messages):
                sender.send_task("noop", [PAYLOAD], queue=QUEUES[0])
            if turn:  # the first one connects
                took_s[name] += time.monotonic() - started_at
    return {name: turns * messages / seconds for name, seconds in took_s.items()}


def latency_ms(client: Any, sender: Celery, pause_s: float) -> float:
    """Send messages one by one to an idle worker, at least so many seconds apart."""
    client.delete("latencies")
    for number in range(SINGLE_MESSAGES):
        time.sleep(pause_s + number % 7 * 0.005)
        sender.send_task("tell", [time.time()], queue=QUEUES[number % 3])
    wait_until(lambda: client.llen("latencies") == SINGLE_MESSAGES, "all told")
    return statistics.median(float(ms) for ms in client.lrange("latencies", 0, -1)) * 1000


def cpu_s(process: "subprocess.Popen[bytes]") -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure both, and print them side by side."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server("valkey", servers.valkey_command, servers.valkey_url, Path(folder))
        server.start()
        try:
            published = published_per_s(server.url)
            figures = {n: {"published per second": published[n], **measure(n, server.url)} for n in TRANSPORTS}
        finally:
            server.discard()
    print(f"{'':52}" + "".join(f"{name:>20}" for name in TRANSPORTS))
    for what, plain in figures["plain"].items():
        print(f"{what:52}" + "".join(_shown(figures[name][what], plain) for name in TRANSPORTS))


def _shown(figure: float, plain: float) -> str:
    """Show a figure, and its ratio to that of Celery's own transport."""
    return f"{figure:12.2f} ({figure / plain if plain else math.nan:5.2f})"


if __name__ == "__main__":
    main()
