"""The receiver counts right, and breaks what it is told to break."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from webhooks.local.processes import kill_group, spawn

ROOT = Path(__file__).parents[2]


class Ports:
    def __init__(self, port: int, control_port: int) -> None:
        self.port = port
        self.control_port = control_port

    def ask(self, mode: str | None) -> Any:
        with socket.create_connection(("127.0.0.1", self.control_port), timeout=10) as link, link.makefile() as lines:
            link.sendall(json.dumps({"mode": mode}).encode() + b"\n")
            return json.loads(lines.readline())

    def post(self, number: int, *, times: int = 1) -> list[int]:
        """Post on one connection; return the statuses."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        found = []
        try:
            for _ in range(times):
                body = json.dumps({"data": {"number": number}}, separators=(",", ":"))
                connection.request("POST", "/0", body, {"webhook-id": f"msg_{number}"})
                response = connection.getresponse()
                response.read()
                found.append(response.status)
        finally:
            connection.close()
        return found

    def counted(self) -> dict[int, tuple[int, int, list[str]]]:
        return {number: (ok, failed, ids) for number, _, ok, failed, _, ids in self.ask(None)}


@pytest.fixture
def receiver() -> Iterator[Ports]:
    process = spawn([sys.executable, "-m", "tests.faults.receiver"], env={}, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield Ports(*json.loads(process.stdout.readline()))
    finally:
        kill_group(process)
        process.wait()
        process.stdout.close()


def test_receiver_counts_each_request_of_a_kept_connection(receiver: Ports):
    assert receiver.post(1, times=3) == [200, 200, 200]
    assert receiver.counted() == {1: (3, 0, ["msg_1"])}


def test_receiver_fails_the_first_attempt_of_every_tenth_event(receiver: Ports):
    assert receiver.post(10, times=2) == [503, 200]
    assert receiver.counted() == {10: (1, 1, ["msg_10"])}


def test_receiver_told_to_fails_every_first_attempt(receiver: Ports):
    receiver.ask("fail_first")
    assert receiver.post(1, times=2) == [503, 200]


def test_receiver_that_is_down_refuses_and_comes_back_at_its_port(receiver: Ports):
    receiver.ask("down")
    with pytest.raises(ConnectionRefusedError):
        receiver.post(1)
    receiver.ask("ok")
    assert receiver.post(1) == [200]


def test_receiver_told_to_resets_every_second_connection(receiver: Ports):
    receiver.ask("reset_half")
    seen = []
    for number in range(1, 5):
        try:
            seen += receiver.post(number)
        except ConnectionResetError:
            seen.append(None)
    assert seen in ([200, None] * 2, [None, 200] * 2)
    assert sorted(entry[:2] for entry in receiver.counted().values()) == [(0, 1), (0, 1), (1, 0), (1, 0)]


def test_receiver_whose_client_is_gone_counts_no_success(receiver: Ports):
    with socket.create_connection(("127.0.0.1", receiver.port)) as link:
        link.sendall(b'POST /0 HTTP/1.1\r\nwebhook-id: m\r\nContent-Length: 10\r\n\r\n"number":1')
    assert receiver.post(2) == [200]  # answered later than the other would have been
    assert receiver.counted()[1] == (0, 1, ["m"])
