"""What tests against one real server share: senders that are closed again, and a certificate authority."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.receiver import Authority
from tests.senders import MakeSender, new_sender
from webhooks.sender import Sender


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
