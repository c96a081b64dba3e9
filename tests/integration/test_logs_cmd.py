"""``webhooks logs`` against a real MongoDB; as a process of its own where that matters."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from pymongo import MongoClient

from tests.lab.commands import OTHER_COMPANY, PATIENCE_S, add
from tests.lab.logs import COMPANY, make_attempt, make_log
from tests.lab.servers import Servers
from tests.lab.stores import Documents
from webhooks.models import now
from webhooks.store.logs import LogStore


def write_logs(database: Documents, count: int) -> None:
    for number in range(count):
        outcome = "success" if number % 2 else "failed"
        attempt = make_attempt(outcome=outcome, error_kind=None, event_id=f"event{number}", delivery_id=f"msg_{number}")
        at = now() - timedelta(minutes=count - number)
        LogStore(database).write(
            [make_log(f"number {number}.", at=at, attempt=attempt, status=200 if number % 2 else 500)]
        )


@pytest.mark.parametrize(
    ("args", "numbers"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        (["-n", "2"], [4, 5]),
        (["-n", "0"], []),
        (["--failed"], [0, 2, 4]),
        (["--success", "-n", "2"], [3, 5]),
        (["--event", "event3"], [3]),
        (["--delivery", "msg_4"], [4]),
        (["--company", COMPANY, "--since", "210s"], [3, 4, 5]),
        (["--since", "270s", "--until", "90s"], [2, 3, 4]),
        (["--company", OTHER_COMPANY], []),
    ],
    ids=lambda value: "_".join(value) if value and isinstance(value[0], str) else "",
)
def test_logs_filters_newest_last(
    run: Callable[..., Result], database: Documents, args: list[str], numbers: list[int]
) -> None:
    write_logs(database, 6)
    lines = run("logs", *args).stdout.splitlines()[1:]
    assert [int(line.rpartition("number ")[2].rstrip(".")) for line in lines] == numbers


def test_logs_as_json_are_the_contract_s(run: Callable[..., Result], database: Documents) -> None:
    write_logs(database, 2)
    first, second = (json.loads(line) for line in run("logs", "--json").stdout.splitlines())
    assert list(first) == [
        "_id",
        "company",
        "createdAt",
        "status",
        "retry",
        "response",
        "event",
        "subscription",
        "__v",
        "attempt",
    ]
    assert (first["response"], second["response"]) == ("number 0.", "number 1.")


def test_logs_of_a_webhook(run: Callable[..., Result], database: Documents) -> None:
    LogStore(database).write([make_log("mine", webhook_id=add(run), attempt=make_attempt())])
    write_logs(database, 1)
    out = run("logs", "--webhook", "wo_update").stdout
    assert "mine" in out
    assert "number" not in out


def test_logs_into_a_pipe_that_closes_is_quiet(env: dict[str, str], database: Documents, tmp_path: Path) -> None:
    write_logs(database, 300)
    command = f"{sys.executable} -m webhooks logs -n 300 | head -1"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.startswith("TIME")


@contextmanager
def following(env: dict[str, str], cwd: Path, *args: str) -> Iterator[tuple[Callable[[str], str], Callable[[], str]]]:
    """Run `webhooks logs --follow`; give a wait for some words of its output, and all of stderr so far."""
    out, err = cwd / "out", cwd / "err"
    with out.open("w") as out_file, err.open("w") as err_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "webhooks", "logs", "--follow", *args],
            cwd=cwd, env={**os.environ, **env}, stdout=out_file, stderr=err_file,
        )  # fmt: skip

    def wait_for(words: str) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while words not in out.read_text() + err.read_text():
            assert process.poll() is None, err.read_text()
            assert time.monotonic() < deadline, f"no {words!r} in {out.read_text()!r} {err.read_text()!r}"
            time.sleep(0.05)
        return out.read_text()

    try:
        yield wait_for, err.read_text
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_follow_shows_new_and_late_logs_once_until_ctrl_c(
    env: dict[str, str], database: Documents, tmp_path: Path
) -> None:
    write_logs(database, 3)
    logs = LogStore(database)
    with following(env, tmp_path, "-n", "1", "--json") as (wait_for, errors):
        wait_for("number 2.")
        logs.write([make_log("new one", at=now(), attempt=make_attempt())])
        wait_for("new one")
        logs.write([make_log("late one", at=now() - timedelta(seconds=20), attempt=make_attempt())])
        wait_for("late one")
        logs.write([make_log("last one", at=now(), attempt=make_attempt())])
        out = wait_for("last one")
        assert errors() == ""
    responses = [json.loads(line)["response"] for line in out.splitlines()]
    assert responses == ["number 2.", "new one", "late one", "last one"]
    assert (tmp_path / "err").read_text().strip() == ""


@pytest.mark.slow
def test_follow_survives_an_outage(servers: Servers, tmp_path: Path) -> None:
    with (
        MongoClient[dict[str, Any]](servers.mongod.url, tz_aware=True) as client,
        following({"WEBHOOKS_MONGODB_URL": servers.mongod.url, "PYTHONUNBUFFERED": "1"}, tmp_path) as (
            wait_for,
            errors,
        ),
    ):
        logs = LogStore(client["webhooks"])
        logs.write([make_log("before", at=now(), attempt=make_attempt())])
        wait_for("before")
        servers.mongod.kill()
        wait_for("; waiting")
        servers.mongod.start()
        logs.write([make_log("after", at=now(), attempt=make_attempt())])
        out = wait_for("after")
        wait_for("MongoDB answers again")
        assert errors().count("\n") == 2
        assert out.count("before") == 1
