"""What tests against one real server share: senders, a certificate authority, the command, and Flower."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result
from pymongo.database import Database

from tests.lab.commands import PATIENCE_S
from tests.lab.flower import FlowerThread
from tests.lab.receiver import Authority
from tests.lab.senders import MakeSender, new_sender
from tests.lab.stores import Documents
from webhooks.cli import cli
from webhooks.sender import Sender


@pytest.fixture
def url(redis_url: str, redis_client: redis.Redis) -> str:
    """URL of an empty Redis."""
    return redis_url


@pytest.fixture
def make_sender() -> Iterator[MakeSender]:
    """Make senders that may reach this machine; arguments change the settings."""
    made: list[Sender] = []

    def make(**changes: Any) -> Sender:
        made.append(new_sender(**changes))
        return made[-1]

    yield make
    for sender in made:
        sender.close()


@pytest.fixture(scope="module")
def authority() -> Authority:
    """A certificate authority that nobody knows yet."""
    return Authority()


@pytest.fixture
def ca_file(authority: Authority, tmp_path: Path) -> Path:
    """Its certificate, for clients to trust."""
    return authority.write_ca(tmp_path)


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose queue of unaccepted connections is full, so that Linux answers no further SYN."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting: list[socket.socket] = []
        try:
            for _ in range(8):
                sock = socket.socket()
                waiting.append(sock)
                sock.settimeout(0.2)
                try:
                    sock.connect(listener.getsockname())
                except TimeoutError:
                    break
            else:
                pytest.skip("this system accepts connections beyond a listener's backlog")
            yield listener.getsockname()[1]
        finally:
            for sock in waiting:
                sock.close()


@pytest.fixture
def web_settings(database: Database[dict[str, Any]], mongodb_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings by which Flower's pages read this test's database."""
    monkeypatch.setenv("WEBHOOKS_MONGODB_URL", f"{mongodb_url.rpartition('/')[0]}/{database.name}")


@pytest.fixture
def flower(web_settings: None) -> Iterator[FlowerThread]:
    """Flower with our pages, on this test's database."""
    with FlowerThread() as flower:
        yield flower


@pytest.fixture
def env(redis_url: str, database: Documents) -> dict[str, str]:
    """An environment in which the command works on this test's database."""
    host, port = database.client.address or ("", 0)
    return {
        "WEBHOOKS_BROKER_URL": redis_url,
        "WEBHOOKS_MONGODB_URL": f"mongodb://{host}:{port}/{database.name}",
        # Its part of a pipe is written at once.
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def run(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command in this process."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return lambda *args: CliRunner().invoke(cli, args)


@pytest.fixture
def run_process(env: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command as operators do."""

    def run(*args: str, stdin: str = "", **more_env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "webhooks", *args],
            cwd=tmp_path, env={**os.environ, **env, **more_env}, input=stdin, capture_output=True, text=True,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    return run
