"""Errors of servers that answer and yet cannot be used: each says why and what to do, and nothing of a password."""

import http.server
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymongo
import pytest
import redis
from flower import command as flower_command

from tests.lab.servers import Server
from tests.lab.worker import Worker, wait_until
from webhooks.local import servers
from webhooks.producer import commands

PASSWORD = "hunter2@:/#%"
ENCODED = "hunter2%40%3A%2F%23%25"
SAMPLE = str(Path(__file__).parents[2] / "webhooks/local/demo/events/task-create.json")
NOTHING = "127.0.0.1:9"

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


@dataclass
class Guarded:
    """A Valkey and a MongoDB that ask for a password, and a server that is neither."""

    valkey: int
    mongod: int
    other: int

    def broker(self, who: str = f"default:{ENCODED}", scheme: str = "redis") -> str:
        return f"{scheme}://{who}@127.0.0.1:{self.valkey}/0" if who else f"{scheme}://127.0.0.1:{self.valkey}/0"

    def database(self, who: str = f"root:{ENCODED}@", options: str = "authSource=admin") -> str:
        return f"mongodb://{who}127.0.0.1:{self.mongod}/webhooks?{options}"


def mongod_command(port: int, folder: Path) -> list[str]:
    return [*servers.mongod_command(port, folder), "--auth"]


class _Http(http.server.BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture(scope="module")
def guarded(redis_url: str, mongodb_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    valkey = Server("valkey", servers.valkey_command, servers.valkey_url, folder)
    mongod = Server("mongod", mongod_command, servers.mongodb_url, folder)
    other = http.server.HTTPServer(("127.0.0.1", 0), _Http)
    thread = threading.Thread(target=other.serve_forever, daemon=True)
    thread.start()
    try:
        valkey.start()
        with redis.Redis(port=valkey.port) as client:
            for name, rules in {
                "careful": "+@all -@dangerous ~* &*",
                "no_scripts": "+@all -@scripting ~* &*",
                "other_keys": "+@all ~other &*",
            }.items():
                client.execute_command("ACL", "SETUSER", name, "on", f">{PASSWORD}", *rules.split())
            client.execute_command("ACL", "SETUSER", "default", "on", "resetpass", f">{PASSWORD}")
        mongod.start()
        with pymongo.MongoClient[Any](mongod.url) as client:
            client.admin.command("createUser", "root", pwd=PASSWORD, roles=["root"])
        with pymongo.MongoClient[Any](mongod.url, username="root", password=PASSWORD, authSource="admin") as client:
            role = {"role": "read", "db": "other"}
            client.admin.command("createUser", "stranger", pwd=PASSWORD, roles=[role])
        yield Guarded(valkey.port, mongod.port, other.server_port)
    finally:
        valkey.discard()
        mongod.discard()
        other.shutdown()
        other.server_close()
        thread.join()


@pytest.fixture
def run(guarded: Guarded) -> Run:
    """Run the command with these servers; no output holds a password."""

    def run(*arguments: str, broker: str | None = None, database: str | None = None) -> Done:
        settings = {
            "WEBHOOKS_MONGODB_TIMEOUT_S": "2",
            "WEBHOOKS_BROKER_URL": broker or guarded.broker(),
            "WEBHOOKS_MONGODB_URL": database or guarded.database(),
        }
        done = run_process([sys.executable, "-m", "webhooks", *arguments], settings)
        assert "hunter2" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def run_process(argv: list[str], settings: dict[str, str]) -> Done:
    env = {**os.environ, **settings}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)


BROKERS = {
    "no_password": (lambda g: g.broker(""), "Authentication required.; check user and password in WEBHOOKS_BROKER_URL"),
    "wrong_password": (lambda g: g.broker("default:hunter2x"), "must be percent-encoded (@ is %40)"),
    "wrong_user": (lambda g: g.broker(f"nobody:{ENCODED}"), "check user and password in WEBHOOKS_BROKER_URL"),
    "no_scripts": (lambda g: g.broker(f"no_scripts:{ENCODED}"), "+@all -@dangerous, with all keys"),
    "other_keys": (lambda g: g.broker(f"other_keys:{ENCODED}"), "+@all -@dangerous, with all keys"),
    "no_such_database": (lambda g: g.broker() + "99", "DB index is out of range; check WEBHOOKS_BROKER_URL"),
    "not_a_redis": (
        lambda g: f"redis://127.0.0.1:{g.other}/0",
        "not a Redis: check host and port in WEBHOOKS_BROKER_URL",
    ),
    "tls_to_a_server_without": (
        lambda g: g.broker(scheme="rediss"),
        "rediss:// and amqps:// are for a server with TLS",
    ),
}


@pytest.mark.parametrize("case", BROKERS)
def test_broker_that_answers_is_not_to_be_started(run: Run, guarded: Guarded, case: str):
    url, said = BROKERS[case]
    result = run("check", broker=url(guarded))
    assert result.returncode == 1
    [line] = [line for line in result.stdout.splitlines() if line.startswith("broker")]
    assert "DOWN" in line
    assert said in line
    assert "start it" not in line


DATABASES = {
    "no_password": (lambda g: g.database(""), "Unauthorized; put user and password into WEBHOOKS_MONGODB_URL"),
    "wrong_password": (lambda g: g.database("root:hunter2x@"), "must be percent-encoded (@ is %40)"),
    "wrong_source": (lambda g: g.database(options=""), "and authSource, the database that holds the user"),
    "no_role": (lambda g: g.database(f"stranger:{ENCODED}@"), "give that user the role readWrite"),
    "no_such_set": (
        lambda g: g.database(options="authSource=admin&replicaSet=x"),
        "check replicaSet in WEBHOOKS_MONGODB_URL",
    ),
    "tls_to_a_server_without": (lambda g: g.database(options="authSource=admin&tls=true"), "TLS"),
    "not_a_mongodb": (lambda g: f"mongodb://127.0.0.1:{g.other}/x", "check host and port in WEBHOOKS_MONGODB_URL"),
}


@pytest.mark.parametrize("case", DATABASES)
def test_database_that_answers_is_not_to_be_started(run: Run, guarded: Guarded, case: str):
    url, said = DATABASES[case]
    result = run("list", database=url(guarded))
    assert (result.returncode, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert said in line
    assert "start it" not in line


def test_what_is_away_is_to_be_started(run: Run):
    result = run("list", database=f"mongodb://u:hunter2@{NOTHING}/x")
    assert "Connection refused" in result.stderr
    assert "start it, or set WEBHOOKS_MONGODB_URL to where it is" in result.stderr
    result = run("queues", broker=f"redis://:hunter2@{NOTHING}/0")
    assert "start it, or set WEBHOOKS_BROKER_URL to where it is" in result.stderr


def test_redis_user_without_dangerous_commands_is_no_outage(run: Run, guarded: Guarded):
    broker = guarded.broker(f"careful:{ENCODED}")
    assert run("send", SAMPLE, "--json", broker=broker).returncode == 0
    assert run("queues", "--json", broker=broker).returncode == 0
    broker_row, unknown, *_ = run("check", broker=broker).stdout.splitlines()
    assert re.match(r"broker +ok +(Valkey|Redis) [0-9.]+ at 127", broker_row)
    assert re.match(r"broker +unknown +maxmemory-policy and appendonly: .* may not read them \(INFO\)", unknown)


def test_full_redis_is_told_apart(run: Run, guarded: Guarded):
    with redis.Redis(port=guarded.valkey, password=PASSWORD) as client:
        client.config_set("maxmemory", "1")
        try:
            result = run("send", SAMPLE)
        finally:
            client.config_set("maxmemory", "0")
    assert result.returncode == 1
    assert "its memory is full: let workers empty it, or raise its maxmemory" in result.stderr


@pytest.mark.parametrize("which", ["broker", "database"])
def test_up_does_not_wait_for_a_server_that_refuses_the_password(guarded: Guarded, tmp_path: Path, which: str):
    settings = {
        "WEBHOOKS_BROKER_URL": guarded.broker("default:hunter2x" if which == "broker" else f"default:{ENCODED}"),
        "WEBHOOKS_MONGODB_URL": guarded.database("root:hunter2x@" if which == "database" else f"root:{ENCODED}@"),
    }
    argv = [sys.executable, "-m", "webhooks", "up", f"--data={tmp_path}", f"--flower-port={servers.free_port()}"]
    done = run_process(argv, settings)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "refuses us" in line
    assert "percent-encoded" in line
    assert "hunter2" not in done.stdout + done.stderr


def test_worker_that_is_refused_says_what_to_do(guarded: Guarded, tmp_path: Path):
    settings = {
        "WEBHOOKS_BROKER_URL": guarded.broker("default:hunter2x"),
        "WEBHOOKS_MONGODB_URL": guarded.database("root:hunter2x@"),
        "WEBHOOKS_MONGODB_TIMEOUT_S": "2",
    }
    worker = Worker(tmp_path, settings)
    worker.start(wait=False)
    try:
        wait_until(lambda: "check user and password in WEBHOOKS_BROKER_URL" in worker.log(), "broker's remedy")
        wait_until(lambda: "check user and password in WEBHOOKS_MONGODB_URL" in worker.log(), "MongoDB's remedy")
        assert "hunter2" not in worker.log()
        assert "Traceback" not in worker.log()
    finally:
        worker.kill()


def test_celery_without_flower_says_how_to_install_it(redis_url: str):
    code = """
import importlib.metadata as metadata, importlib.util as util, sys
find, find_spec = metadata.entry_points, util.find_spec
ours = metadata.EntryPoint("flower", "webhooks.producer.commands:flower", "celery.commands")
metadata.entry_points = lambda **wanted: [ours] if wanted.get("group") == "celery.commands" else find(**wanted)
util.find_spec = lambda name, *more: None if name == "flower" else find_spec(name, *more)
sys.argv = ["celery", "-A", "webhooks", "flower", "--port=1"]
from celery.__main__ import main
sys.exit(main())
"""
    done = run_process([sys.executable, "-c", code], {"WEBHOOKS_BROKER_URL": redis_url})
    assert done.returncode == 1
    assert "pip install '.[flower]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_our_entry_point_is_flowers_own_command_where_it_is_installed():
    assert commands.flower is flower_command.flower
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["celery.commands"] == {"flower": "webhooks.producer.commands:flower"}


@pytest.mark.parametrize("arguments", [["secret", "rotate", "one"], ["header", "set", "one", "X", "--secret"]])
def test_missing_key_names_the_command_that_makes_one(run: Run, arguments: list[str]):
    add = ["--company", "a" * 24, "--trigger", "logout-user", "--unsigned", "--url", "https://hooks.example.com"]
    run("add", "--code", "one", *add)
    result = run(*arguments)
    assert result.returncode == 1
    assert "WEBHOOKS_ENCRYPTION_KEY is not set: " in result.stderr
    assert "`webhooks secret new-key` makes a first one" in result.stderr
