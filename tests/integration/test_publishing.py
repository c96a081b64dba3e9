"""How long a service waits for a broker that is away: refusing, silent or behind a dead route, or back in time."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab.samples_data import read_sample
from tests.lab.servers import Server
from webhooks.local import servers

EVENT = read_sample("event-task-create")

#: `WEBHOOKS_PUBLISH_TIMEOUT_S`, and how far beyond it a call may end on a busy machine: less than a second try takes.
TIMEOUT_S = 3.0
SLACK_S = 2.5

#: A service that calls each way in once for each line on standard input, and tells for each call how long it took.
SERVICE = """
import json, sys, threading, time
from webhooks import app, deliver

event = json.loads(sys.argv[1])
calls = {
    "delay": lambda: deliver.delay(event),
    "apply_async": lambda: deliver.apply_async([event], countdown=1),
    "delay_many": lambda: deliver.delay_many([event] * 300),
}

def run(name):
    started = time.monotonic()
    try:
        calls[name]()
        outcome = "ok"
    except Exception as error:
        outcome = type(error).__name__
    sys.stdout.write(json.dumps([name, outcome, time.monotonic() - started]) + "\\n")
    sys.stdout.flush()

app.amqp  # loads the transport
print("ready", flush=True)
for line in sys.stdin:
    name, _, threads = line.strip().partition(" ")
    crew = [threading.Thread(target=run, args=(name,)) for _ in range(int(threads or 1))]
    for one in crew:
        one.start()
    for one in crew:
        one.join()
"""
WAYS_IN = ["delay", "apply_async", "delay_many"]


class Service:
    """A running service."""

    def __init__(self, broker_url: str, timeout_s: float = TIMEOUT_S) -> None:
        env = {**os.environ, "WEBHOOKS_BROKER_URL": broker_url, "WEBHOOKS_PUBLISH_TIMEOUT_S": str(timeout_s)}
        argv = [sys.executable, "-c", SERVICE, json.dumps(EVENT)]
        self._process = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def call(self, name: str, threads: int = 1) -> list[tuple[str, float]]:
        """Call a way in, in so many threads; return what came of each and its seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name} {threads}\n")
        self._process.stdin.flush()
        found = [json.loads(self._read()) for _ in range(threads)]
        return [(outcome, seconds) for _, outcome, seconds in found]

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Server]:
    """A broker of this test alone."""
    server = Server("valkey", servers.valkey_command, servers.valkey_url, tmp_path)
    server.start()
    yield server
    server.discard()


@pytest.fixture
def service(valkey: Server) -> Iterator[Service]:
    """A service that has handed events in before, so that it has connections."""
    made = Service(valkey.url)
    assert [made.call(name)[0][0] for name in WAYS_IN] == ["ok"] * 3
    yield made
    made.close()


def assert_bounded(results: list[tuple[str, float]]) -> None:
    assert {outcome for outcome, _ in results} == {"OperationalError"}
    assert all(TIMEOUT_S / 2 < seconds < TIMEOUT_S + SLACK_S for _, seconds in results), results


@pytest.mark.parametrize("name", WAYS_IN)
def test_broker_that_refuses_is_waited_for_as_long_as_the_setting_says(service: Service, valkey: Server, name: str):
    valkey.kill()
    assert_bounded(service.call(name))


@pytest.mark.parametrize("name", WAYS_IN)
def test_broker_that_hangs_is_waited_for_as_long_as_the_setting_says(service: Service, valkey: Server, name: str):
    """It was waited for 30 s, and then again, up to ten times."""
    valkey.pause()
    assert_bounded(service.call(name))
    valkey.resume()
    assert service.call(name)[0][0] == "ok"


def test_threads_that_wait_for_a_connection_wait_no_longer(service: Service, valkey: Server):
    """The pool has ten connections; who waited for one of them waited without end."""
    valkey.pause()
    assert_bounded(service.call("delay", threads=25))


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_broker_behind_a_dead_route_is_waited_for_as_long_as_the_setting_says(full_port: int, scheme: str):
    service = Service(f"{scheme}://127.0.0.1:{full_port}/")
    try:
        for name in WAYS_IN:
            assert_bounded(service.call(name))
    finally:
        service.close()


def test_broker_that_is_back_in_time_gets_the_event(valkey: Server):
    service = Service(valkey.url, timeout_s=30)
    try:
        for name in WAYS_IN:
            valkey.stop()
            with ThreadPoolExecutor(1) as threads:
                called = threads.submit(service.call, name)
                time.sleep(0.3)
                valkey.start()  # ends with the thread that starts it
                ((outcome, seconds),) = called.result()
            assert outcome == "ok"
            assert 0.3 < seconds < 30
            # Over a connection with the usual limits again.
            assert service.call(name)[0][0] == "ok"
    finally:
        service.close()
