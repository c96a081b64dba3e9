"""What every test may ask for: real servers, clean databases on them, and an environment without our settings."""

import os
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pymongo
import pytest
import redis
from pymongo.database import Database

from tests.lab.servers import Server, Servers
from webhooks.config import get_settings
from webhooks.delivery.meters import Fault, meters
from webhooks.errors import ServerMissing
from webhooks.local import servers as local_servers

# A shell's background job is started with Ctrl-C ignored, and so would be all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Workers and commands that tests start would each compile the whole package, a fifth of a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

#: Test processes for each core: most tests wait most of their time.
_PROCESSES_PER_CORE = 3


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Share the whole suite among processes; run tests that are named in this one, where a debugger works."""
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return _PROCESSES_PER_CORE * len(os.sched_getaffinity(0)) if is_whole else 0


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep a developer's own settings out of the tests, and one test's settings out of the next."""
    for name in list(os.environ):
        if name.startswith("WEBHOOKS_") and not name.startswith("WEBHOOKS_TEST_"):
            monkeypatch.delenv(name)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Counter[Fault]:
    """The faults that this process counts during the test."""
    counted: Counter[Fault] = Counter()
    monkeypatch.setattr(meters, "faults", counted)
    return counted


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Redis for tests; they may wipe it. One that runs already: WEBHOOKS_TEST_REDIS_URL."""
    if url := os.environ.get("WEBHOOKS_TEST_REDIS_URL"):
        yield url
        return
    try:
        server = Server(
            "valkey", local_servers.valkey_command, local_servers.valkey_url, tmp_path_factory.mktemp("session")
        )
    except ServerMissing as missing:
        _skip_or_fail(missing)
    yield from _run(server)


@pytest.fixture(scope="session")
def mongodb_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a MongoDB for tests. One that runs already: WEBHOOKS_TEST_MONGODB_URL."""
    if url := os.environ.get("WEBHOOKS_TEST_MONGODB_URL"):
        yield url
        return
    try:
        server = Server(
            "mongod", local_servers.mongod_command, local_servers.mongodb_url, tmp_path_factory.mktemp("session")
        )
    except ServerMissing as missing:
        _skip_or_fail(missing)
    yield from _run(server)


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of an empty Redis."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        yield client


@pytest.fixture
def database(mongodb_url: str) -> Iterator[Database[dict[str, Any]]]:
    """A database of this test alone, with dates that know their zone."""
    with pymongo.MongoClient[dict[str, Any]](mongodb_url, tz_aware=True) as client:
        database = client[f"test_{uuid.uuid4().hex}"]
        yield database
        client.drop_database(database)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """A Valkey and a MongoDB of this test alone, running, to be stopped, killed and paused at will."""
    try:
        both = Servers(tmp_path / "servers")
    except ServerMissing as missing:
        _skip_or_fail(missing)
    try:
        both.start()
        yield both
    finally:
        both.discard()


@pytest.fixture(scope="session")
def installed_servers() -> None:
    """Make sure that servers can be started."""
    try:
        local_servers.find_valkey()
        local_servers.find_mongod()
    except ServerMissing as missing:
        _skip_or_fail(missing)


def _run(server: Server) -> Iterator[str]:
    try:
        server.start()
        yield server.url
    finally:
        server.discard()


def _skip_or_fail(missing: ServerMissing) -> NoReturn:
    """A developer without a server tests the rest; CI must not pass without having tried."""
    if os.environ.get("CI"):
        pytest.fail(str(missing))
    pytest.skip(str(missing))
