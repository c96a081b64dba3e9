"""The receiver behaves as it is told to, and notes what came."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.fairness.judge import Arrival
from tests.fairness.receiver import Behaviour, Endpoint
from tests.lab.quick_http import command
from tests.lab.worker import wait_until
from webhooks.local.processes import kill_group, spawn

ROOT = Path(__file__).parents[2]


class Ports:
    def __init__(self, port: int, control_port: int) -> None:
        self.port = port
        self.control_port = control_port

    def set(self, path: str, behaviour: Behaviour) -> None:
        command(self.control_port, {"do": "set", "paths": {path: asdict(behaviour)}})

    def counts(self, path: str) -> dict[str, int]:
        return command(self.control_port, {"do": "counts"})[path]

    def records(self) -> list[Arrival]:
        return [Arrival(*record) for record in command(self.control_port, {"do": "records"})]

    def post(self, path: str, *numbers: int, data: dict[str, Any] | None = None) -> list[int]:
        """Post on one connection; return the statuses."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        found = []
        try:
            for number in numbers:
                body = json.dumps({"data": {"number": number, **(data or {})}}, separators=(",", ":"))
                connection.request("POST", path, body, {"webhook-id": f"msg_{number}"})
                response = connection.getresponse()
                response.read()
                found.append(response.status)
        finally:
            connection.close()
        return found

    def begin(self, path: str) -> socket.socket:
        """Send a request without waiting for its answer."""
        link = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        link.sendall(f'POST {path} HTTP/1.1\r\nwebhook-id: m\r\nContent-Length: 10\r\n\r\n"number":1'.encode())
        return link


@pytest.fixture
def receiver() -> Iterator[Ports]:
    process = spawn([sys.executable, "-m", "tests.fairness.receiver"], env={}, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield Ports(*json.loads(process.stdout.readline()))
    finally:
        kill_group(process)
        process.wait()
        process.stdout.close()


def test_receiver_notes_what_came_and_when(receiver: Ports):
    before = time.monotonic()
    assert receiver.post("/a", 1, 2, data={"sent_at": 12.5}) == [200, 200]
    first, second = receiver.records()
    assert (first.path, first.number, first.status, first.sent_at, first.webhook_id) == ("/a", 1, 200, 12.5, "msg_1")
    assert second.number == 2
    assert first.ended_at is not None
    assert before < first.arrived_at <= first.ended_at <= second.arrived_at < time.monotonic()
    assert receiver.counts("/a") == {"came": 2, "ok": 2, "in_flight": 0, "most_in_flight": 1, "outages": 0}


def test_receiver_told_to_takes_its_time(receiver: Ports):
    receiver.set("/a", Behaviour(delay_s=0.2))
    assert receiver.post("/a", 1) == [200]
    (record,) = receiver.records()
    assert record.ended_at is not None
    assert 0.2 <= record.ended_at - record.arrived_at < 1


def test_receiver_behaves_by_path(receiver: Ports):
    receiver.set("/a", Behaviour(status=503))
    assert receiver.post("/a", 1) == [503]
    assert receiver.post("/b", 1) == [200]


def test_receiver_that_was_down_is_up_when_told(receiver: Ports):
    receiver.set("/a", Behaviour(status=503))
    assert receiver.post("/a", 1) == [503]
    receiver.set("/a", Behaviour())
    assert receiver.post("/a", 1) == [200]
    assert [record.is_ok for record in receiver.records()] == [False, True]


def test_receiver_fails_its_share(receiver: Ports):
    receiver.set("/a", Behaviour(fail_share=0.5))
    statuses = receiver.post("/a", *range(100))
    assert set(statuses) == {200, 500}
    assert 25 < statuses.count(500) < 75


def test_receiver_that_hangs_holds_requests_until_the_client_goes(receiver: Ports):
    receiver.set("/a", Behaviour("hang"))
    links = [receiver.begin("/a") for _ in range(3)]
    wait_until(lambda: receiver.counts("/a")["in_flight"] == 3, "three in flight")
    assert [(record.ended_at, record.status) for record in receiver.records()] == [(None, None)] * 3
    for link in links:
        link.close()
    wait_until(lambda: receiver.counts("/a")["in_flight"] == 0, "none in flight")
    assert receiver.counts("/a") == {"came": 3, "ok": 0, "in_flight": 0, "most_in_flight": 3, "outages": 0}
    assert all(record.ended_at is not None and record.status is None for record in receiver.records())


def test_receiver_whose_client_is_gone_counts_no_success(receiver: Ports):
    receiver.set("/a", Behaviour(delay_s=0.2))
    receiver.begin("/a").close()
    assert receiver.post("/a", 2) == [200]  # answered later than the other would have been
    assert [record.status for record in receiver.records()] == [None, 200]


def test_receiver_forgets(receiver: Ports):
    receiver.post("/a", 1)
    command(receiver.control_port, {"do": "forget"})
    assert receiver.records() == []
    assert receiver.counts("/a")["came"] == 0


def test_receiver_that_wakes_answers_what_is_too_much_with_503(receiver: Ports):
    receiver.set("/a", Behaviour("waking", growth=0, slack=0))
    assert receiver.post("/a", 1) == [503]
    assert receiver.counts("/a")["outages"] == 1


def bears(*by_second: int) -> list[int]:
    """Return how many requests of each second a waking endpoint bears that bears 3 × the last second's + 20."""
    endpoint = Endpoint(Behaviour("waking", growth=3, slack=20))
    return [sum(endpoint.take(100 + second + 0.5) for _ in range(count)) for second, count in enumerate(by_second)]


def test_waking_endpoint_bears_a_load_that_grows():
    assert bears(1, 20, 80, 260, 800, 800) == [1, 20, 80, 260, 800, 800]


def test_waking_endpoint_falls_over_when_all_comes_at_once():
    assert bears(1, 200) == [1, 23]


def test_waking_endpoint_forgets_what_it_bore_while_nothing_comes():
    assert bears(20, 80, 0, 100) == [20, 80, 0, 20]
