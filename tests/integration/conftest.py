"""What tests against one real server share: senders that are closed again, and a certificate authority."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from pymongo.database import Database

from tests.lab.flower import FlowerThread
from tests.lab.receiver import Authority
from tests.lab.senders import MakeSender, new_sender
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
