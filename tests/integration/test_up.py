"""``webhooks up`` with the real servers, and a stand-in for the worker; the real one is the acceptance tests'."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from tests.lab.servers import TIMEOUT_S
from webhooks.local import servers

#: Runs `up` in a folder. Its worker says which broker it was given, and that it works, and waits.
UP = """
import os, sys
from pathlib import Path
from webhooks.local import up
from webhooks.config import Settings
from webhooks.errors import WebhooksError
from webhooks.local.processes import Program

def worker(env, cwd, *, grace_s):
    return Program("worker", ["sh", "-c", "echo works on $WEBHOOKS_BROKER_URL; exec sleep 600"], env, cwd=cwd)

def flower(env, cwd, port):
    return Program("flower", ["sh", "-c", "echo listens; exec sleep 600"], env, cwd=cwd)

up.worker_program, up.flower_program = worker, flower
try:
    up.run_up(Path(sys.argv[1]), Settings(), flower_port=int(sys.argv[2]))
except WebhooksError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class Ports(NamedTuple):
    valkey: int
    mongod: int
    flower: int


class Up:
    """One run of `up` in a process of its own."""

    def __init__(self, folder: Path, ports: Ports, broker_url: str | None = None) -> None:
        env = os.environ | {
            "WEBHOOKS_BROKER_URL": broker_url or servers.valkey_url(ports.valkey),
            "WEBHOOKS_MONGODB_URL": servers.mongodb_url(ports.mongod),
        }
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", UP, str(folder), str(ports.flower)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def read_until(self, text: str) -> str:
        """Read its output up to a line with this text. pytest's time-out ends a wait in vain."""
        assert self.process.stdout
        read = ""
        for line in self.process.stdout:
            read += line
            if text in line:
                return read
        raise AssertionError(f"{text!r} did not come: {read}")

    def end(self) -> str:
        """Let it end and give what it wrote meanwhile."""
        return self.process.communicate(timeout=TIMEOUT_S)[0]


@pytest.fixture
def ports(mongodb_url: str, redis_url: str) -> Ports:
    # The URLs only for their skip: without servers there is no `up`.
    return Ports(servers.free_port(), servers.free_port(), servers.free_port())


@pytest.fixture
def ups() -> Iterator[list[Up]]:
    """Runs of `up` to be ended however the test ends."""
    started: list[Up] = []
    yield started
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
        up.end()
        shutil.rmtree(up.folder, ignore_errors=True)  # 300 MB each, where a MongoDB ran


def test_up_starts_everything_says_where_and_keeps_the_data(tmp_path: Path, ports: Ports, ups: list[Up]) -> None:
    folder = tmp_path / "data"
    for runs in (1, 2):
        up = Up(folder, ports)
        ups.append(up)
        output = up.read_until("works on")
        assert f"Broker    127.0.0.1:{ports.valkey} (Valkey, started here)" in output
        assert f"Database  127.0.0.1:{ports.mongod} (MongoDB, started here)" in output
        assert f"Flower    http://127.0.0.1:{ports.flower}" in output
        assert f"Data      {folder}" in output
        assert f"worker | works on redis://127.0.0.1:{ports.valkey}/0" in output
        with redis.Redis.from_url(servers.valkey_url(ports.valkey)) as client:
            assert client.incr("runs") == runs
        up.process.send_signal((signal.SIGINT, signal.SIGTERM)[runs - 1])
        assert up.end().endswith("All stopped.\n")
        assert up.process.returncode == 0
        assert servers.is_free(ports.valkey)
        assert servers.is_free(ports.mongod)


def test_up_twice_in_one_folder_says_which_process_has_it(tmp_path: Path, ports: Ports, ups: list[Up]) -> None:
    first = Up(tmp_path / "data", ports)
    ups.append(first)
    first.read_until("works on")
    second = Up(tmp_path / "data", Ports(*(servers.free_port() for _ in range(3))))
    ups.append(second)
    output = second.end()
    assert output.startswith("CannotStart: `webhooks up` runs already with its data in")
    assert f"(process {first.process.pid})" in output
    assert second.process.returncode == 1


@pytest.mark.parametrize(
    ("which", "remedy"),
    [("valkey", "WEBHOOKS_BROKER_URL"), ("mongod", "WEBHOOKS_MONGODB_URL"), ("flower", "--flower-port")],
)
def test_up_with_a_taken_port_says_which_and_what_to_set(
    tmp_path: Path, ports: Ports, ups: list[Up], which: str, remedy: str
) -> None:
    port = getattr(ports, which)
    with socket.create_server((servers.LOOPBACK, port)):
        up = Up(tmp_path / "data", ports)
        ups.append(up)
        output = up.end()
    assert f"CannotStart: port {port} on 127.0.0.1" in output
    assert remedy in output
    assert output.count("\n") == 1
    assert up.process.returncode == 1


def test_up_in_a_folder_that_cannot_be_made_says_so(tmp_path: Path, ports: Ports, ups: list[Up]) -> None:
    (tmp_path / "file").touch()
    up = Up(tmp_path / "file" / "data", ports)
    ups.append(up)
    assert up.end() == f"CannotStart: cannot keep data in {tmp_path}/file/data: Not a directory\n"


def test_up_only_waits_for_a_broker_that_is_the_users_own(tmp_path: Path, ports: Ports, ups: list[Up]) -> None:
    command = [*servers.valkey_command(ports.valkey, tmp_path), "--requirepass", "secret"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as own:
        try:
            up = Up(tmp_path / "data", ports, f"redis://:secret@127.0.0.1:{ports.valkey}/0")
            ups.append(up)
            output = up.read_until("Broker ")
            assert f"The broker at 127.0.0.1:{ports.valkey} is your own" in output
            assert f"Broker    127.0.0.1:{ports.valkey} (your own)" in output
            assert "secret" not in output
            up.read_until("works on")
            up.process.send_signal(signal.SIGTERM)
            up.end()
            assert own.poll() is None
            assert not (tmp_path / "data" / "valkey").exists()
        finally:
            own.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_up_after_being_killed_starts_again_in_the_same_folder(tmp_path: Path, ports: Ports, ups: list[Up]) -> None:
    for _ in range(2):
        up = Up(tmp_path / "data", ports)
        ups.append(up)
        up.read_until("works on")
        up.process.kill()
        up.process.wait()
