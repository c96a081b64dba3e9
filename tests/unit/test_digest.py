"""What a worker tells of its settings."""

from typing import Any

import pytest

from webhooks.config import Settings
from webhooks.rules.encryption import fingerprint, new_key
from webhooks.worker.digest import Digest, open_missing


def digest(**settings: Any) -> Digest:
    return Digest.of(Settings.model_validate(settings))


def test_digest_is_read_as_it_was_told():
    made = digest(allowed_networks="10.0.0.0/8, ::1/128", allowed_ports="443,80,8000-8002", encryption_key=new_key())
    assert Digest.read(made.to_wire()) == made
    assert made.allowed_ports == "80,443,8000-8002"
    assert made.ports() == {80, 443, 8000, 8001, 8002}
    assert sorted(map(str, made.networks())) == ["10.0.0.0/8", "::1/128"]
    assert digest().ports() is None


def test_digest_holds_no_secret():
    keys = [new_key(), new_key()]
    urls = {"broker_url": "redis://:hunter2@h/0", "mongodb_url": "mongodb://u:hunter2@h/x"}
    made = digest(encryption_key=",".join(keys), proxy_url="http://u:hunter2@h:1", **urls)
    text = repr(made.to_wire())
    assert "hunter2" not in text
    assert not any(key in text for key in keys)
    assert made.encryption_key == [fingerprint(key) for key in keys]


@pytest.mark.parametrize(
    "reply",
    [
        None,
        {},
        {"error": "no such command"},
        digest().to_wire() | {"more": 1},
        digest().to_wire() | {"allowed_networks": ["nonsense"]},
        digest().to_wire() | {"allowed_networks": 5},
        digest().to_wire() | {"allowed_ports": "a-b"},
        digest().to_wire() | {"encryption_key": [5]},
    ],
)
def test_what_is_no_digest_counts_as_none(reply: Any):
    assert Digest.read(reply) is None


def test_comparing_names_each_setting_that_differs():
    assert digest().compare(digest()) == []
    there, here = digest(allowed_networks="127.0.0.0/8", max_retries=1, retry_delay_s=0.5), digest()
    assert there.compare(here) == [
        "WEBHOOKS_ALLOWED_NETWORKS is 127.0.0.0/8 there, not set here",
        "WEBHOOKS_RETRY_DELAY_S is 0.5 there, 30 here",
        "WEBHOOKS_MAX_RETRIES is 1 there, 3 here",
    ]


def test_key_may_be_any_of_a_workers():
    old, new = new_key(), new_key()
    workers = {"both": digest(encryption_key=f"{new},{old}"), "new": digest(encryption_key=new), "none": digest()}
    assert open_missing(workers, old) == ["new", "none"]
    assert open_missing(workers, new) == ["none"]
