"""What ends a start, or holds it up, is one line that names the setting: worker, Flower, command and producer alike."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.lab.logs import make_log
from tests.lab.old_redis import OldRedis
from tests.lab.servers import Servers
from tests.lab.worker import Worker, wait_until

EVENT = make_log().event.to_wire()
DELIVER = f"import webhooks; webhooks.deliver.delay({EVENT!r})"

#: Ways to start, and how each begins its line.
STARTS = {
    "worker": (["-m", "celery", "-A", "webhooks", "worker"], "Error: "),
    "flower": (["-m", "celery", "-A", "webhooks", "flower"], "Error: "),
    "inspect": (["-m", "celery", "-A", "webhooks", "inspect", "ping"], "Error: "),
    "list": (["-m", "webhooks", "list"], "webhooks: "),
    "check": (["-m", "webhooks", "check"], "webhooks: "),
    "producer": (["-c", DELIVER], "webhooks.errors.InvalidSettings: "),
}


def start(name: str, **settings: str) -> subprocess.CompletedProcess[str]:
    argv, env = [sys.executable, *STARTS[name][0]], {**os.environ, **settings}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize(
    ("variable", "url", "remedy"),
    [
        ("WEBHOOKS_BROKER_URL", "redis://:sec#ret@127.0.0.1/0", "percent-encode"),
        ("WEBHOOKS_BROKER_URL", "memory://", "for tests only"),
        ("WEBHOOKS_MONGODB_URL", "mongodb://user:secret@127.0.0.1/db?w=1", "leave the option out"),
    ],
    ids=["hash", "memory", "w"],
)
def test_url_that_cannot_be_used_is_one_line_of_its_variable(name: str, variable: str, url: str, remedy: str):
    done = start(name, **{variable: url})
    assert done.returncode == 1
    *before, line = done.stderr.splitlines()
    assert line.startswith(f"{STARTS[name][1]}{variable}: ")
    assert remedy in line
    # In a producer it is an exception, with the way to the caller's line and nothing of what led to it.
    assert before == [] or (name == "producer" and "During handling" not in done.stderr)
    assert not any(part in done.stdout + done.stderr for part in ("sec#ret", "secret", "ret@"))


@pytest.mark.parametrize("option", ["maxPoolSize=many", "tlsCAFile=/nowhere.pem"])
def test_option_that_only_the_driver_knows_ends_the_worker_as_well(option: str):
    done = start("worker", WEBHOOKS_MONGODB_URL=f"mongodb://u:secret@127.0.0.1/db?{option}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: WEBHOOKS_MONGODB_URL: the option {option.partition('=')[0]} ")
    assert (done.stderr.count("\n"), "secret" in done.stderr) == (1, False)


@pytest.fixture(params=["6.2.14", "5.0.14"])
def old_redis(request: pytest.FixtureRequest) -> Iterator[OldRedis]:
    """A Redis that does not know what the transport's scripts begin with."""
    with OldRedis(request.param) as server:
        yield server


def test_redis_that_is_too_old_ends_the_worker_in_one_line(old_redis: OldRedis):
    done = start("worker", WEBHOOKS_BROKER_URL=old_redis.url)
    assert done.returncode == 1
    assert f"Redis {old_redis.version} at WEBHOOKS_BROKER_URL is too old: use Redis 7.0 or later" in done.stderr
    assert "Traceback" not in done.stderr


def test_redis_that_is_too_old_is_said_to_a_producer(old_redis: OldRedis):
    done = start("producer", WEBHOOKS_BROKER_URL=old_redis.url)
    assert done.stderr.splitlines()[-1].startswith(
        f"webhooks.errors.BrokerTooOld: Redis {old_redis.version} at WEBHOOKS_BROKER_URL is too old"
    )


def test_password_that_is_refused_is_said_to_be_wrong_and_waited_for(servers: Servers, tmp_path: Path):
    with redis.Redis.from_url(servers.valkey.url) as client:
        client.config_set("requirepass", "right")
    settings = {
        "WEBHOOKS_BROKER_URL": servers.valkey.url.replace("redis://", "redis://:secret@"),
        "WEBHOOKS_MONGODB_URL": servers.mongod.url.replace("mongodb://", "mongodb://user:secret@"),
    }
    worker = Worker(tmp_path, settings)
    worker.start(wait=False)
    try:
        wait_until(lambda: "check user and password in WEBHOOKS_BROKER_URL" in worker.log(), "told of the broker's")
        wait_until(lambda: "check user and password in WEBHOOKS_MONGODB_URL" in worker.log(), "told of MongoDB's")
        with redis.Redis.from_url(servers.valkey.url, password="right") as client:
            client.config_set("requirepass", "secret")
        wait_until(lambda: " ready." in worker.log(), "ready, with the password that is right now")
    finally:
        worker.kill()
    assert "secret" not in worker.log()
