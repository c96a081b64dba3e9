"""``python -m tests.bench`` from its command line, with real parts and few events. Asserts nothing of speed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
import redis

from tests.bench.rows import ROWS

#: Seconds for what takes some twenty, on a machine that runs other things beside.
TIMEOUT_S = 100


pytestmark = pytest.mark.usefixtures("installed_servers")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for temporary files, of which none may be left, nor a process that works on one."""
    own = tmp_path / "temporary"
    own.mkdir()
    yield own
    assert [*own.iterdir()] == []
    assert processes_with(str(own)) == []


def processes_with(text: str) -> list[str]:
    """Return the command lines in which a text stands."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    env = {name: value for name, value in os.environ.items() if not name.startswith("WEBHOOKS_")}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench", *arguments],
        env={**env, "TMPDIR": str(folder), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    process = start(folder, *arguments)
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.mark.slow
def test_run_tells_figures_bars_and_what_it_ran_on(folder: Path):
    done = run(folder, "--quick", "--only", "a,bare", "--events", "300", "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    figures = told["figures"]
    assert {key: figure["error"] for key, figure in figures.items()} == dict.fromkeys(figures)
    assert {*figures} == {*ROWS["a"].figures, *ROWS["bare"].figures}
    # The kernel counts CPU time in ticks: what a server spends on so few events may be none.
    assert all(
        value > 0 or (value == 0 and "cpu" in key) for key, figure in figures.items() for value in figure["samples"]
    )
    bars = {bar["key"]: bar for bar in told["bars"]}
    assert bars["a_bare"]["value"] == pytest.approx(figures["a"]["value"] / figures["bare"]["value"])
    assert bars["a_plain"]["value"] is None
    assert told["machine"]["mongod"]
    assert told["settings"] == {"WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8"}
    assert told["runs"][0]["logged"][-1][1] == 300
    assert "(a) instant receivers" in done.stderr


@pytest.mark.slow
def test_baseline_and_producers_are_measured_on_servers_that_are_given_and_left_empty(
    folder: Path, redis_client: redis.Redis, redis_url: str, mongodb_url: str, tmp_path: Path
):
    path = tmp_path / "report.json"
    database = f"bench_{os.getpid()}"
    given = ["--broker-url", redis_url, "--mongodb-url", f"{mongodb_url.rpartition('/')[0]}/{database}"]
    done = run(folder, "--quick", "--only", "plain", "--events", "500", *given, "--json", str(path))
    assert done.returncode == 0, done.stderr
    told = json.loads(path.read_text())
    assert told["figures"]["plain"]["value"] > 0, done.stderr
    assert not told["plan"]["own_broker"]
    assert "(a) against a plain Celery worker" in done.stdout
    assert redis_client.dbsize() == 0
    with pymongo.MongoClient[dict[str, Any]](mongodb_url) as client:
        assert database not in client.list_database_names()


def test_server_that_holds_something_is_refused_and_left_as_it_is(
    folder: Path, redis_client: redis.Redis, redis_url: str, mongodb_url: str
):
    redis_client.set("somebody's", "own")
    done = run(folder, "--only", "bare", "--broker-url", redis_url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "a Redis database of its own" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert redis_client.get("somebody's") == b"own"


@pytest.mark.slow
def test_ctrl_c_ends_it_and_leaves_nothing_behind(folder: Path):
    process = start(folder, "--quick", "--only", "a", "--events", "20000")
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "(a) instant" in line:
                break
        time.sleep(3)  # among producers or workers
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 130


def test_own_receiver_answers_at_once_late_or_never_and_notes_what_came(tmp_path: Path):
    report = tmp_path / "receiver.json"
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.receiver", str(report), "127.0.0.1", "2", "0.2"])
    try:
        deadline = time.monotonic() + 30
        while not report.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        told = json.loads(report.read_text())
        assert told["pid"] == process.pid
        first, second = told["ports"]
        body = b'{"data":{"number": 7,"sent_at":1.5}}'
        with socket.create_connection(("127.0.0.1", first), timeout=30) as link:
            link.settimeout(30)
            # Two requests in three pieces, then a late one, over one connection.
            request = ask(b"/", body)
            for piece in (request[:20], request[20:] + request[:50], request[50:]):
                link.sendall(piece)
                time.sleep(0.05)
            assert read(link, 2).count(b"200 OK") == 2
            begun = time.monotonic()
            link.sendall(ask(b"/slow", body))
            read(link, 1)
            assert time.monotonic() - begun >= 0.2
        with socket.create_connection(("127.0.0.1", second), timeout=30) as link:
            link.sendall(ask(b"/hang", b"{}"))
            link.settimeout(0.5)
            with pytest.raises(TimeoutError):
                link.recv(1)
        with socket.create_connection(("127.0.0.1", second), timeout=30) as link:
            link.sendall(ask(b"/arrivals", b""))
            arrivals = json.loads(read(link, 1).rpartition(b"\r\n\r\n")[2])
        assert [(number, sent_at) for number, sent_at, _ in arrivals] == [(7, 1.5)] * 3
    finally:
        process.kill()
        process.wait()


def ask(path: bytes, body: bytes) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path, len(body), body)


def read(link: socket.socket, answers: int) -> bytes:
    """Read so many whole answers."""
    data = b""
    while True:
        rest, count = data, 0
        while b"\r\n\r\n" in rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            size = int(head.rpartition(b": ")[2])
            if len(rest) < size:
                break
            rest, count = rest[size:], count + 1
        if count == answers:
            return data
        data += link.recv(65536)
