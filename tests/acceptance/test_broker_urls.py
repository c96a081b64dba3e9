"""Brokers by URLs of every kind that is supported: an event goes all the way, and TLS is what it is said to be."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.acceptance.conftest import Stack
from tests.lab.receiver import Authority, Receiver
from tests.lab.samples_data import read_sample
from tests.lab.tls_front import TlsFront

EVENT = read_sample("event-task-create")
SEND = f"import webhooks; webhooks.deliver.delay({EVENT!r})"


def is_delivered(stack: Stack) -> bool:
    """Send an event with the stack's URL, through a worker with the same."""
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        stack.start_worker()
        stack.run_producer(SEND)
        stack.logs(1)
        return len(receiver.requests) == 1


def test_valkey_url_is_a_redis_url(stack: Stack):
    stack.redis_url = stack.redis_url.replace("redis://", "valkey://")
    assert is_delivered(stack)


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_event_goes_over_tls_that_is_checked(scheme: str, stack: Stack, tmp_path: Path):
    authority = Authority()
    ca_path = authority.write_ca(tmp_path)
    with TlsFront(urlsplit(stack.redis_url).port or 0, authority.context("localhost")) as front:
        stack.redis_url = f"{scheme}://localhost:{front.port}/0?ssl_ca_certs={ca_path}"
        assert is_delivered(stack)


@pytest.mark.parametrize(
    ("name", "options", "is_let_through"),
    [
        ("localhost", "", False),
        ("localhost", "?ssl_cert_reqs=none", True),
        ("localhost", "?ssl_ca_certs={ca}", True),
        ("other.example", "?ssl_ca_certs={ca}", False),
        ("other.example", "?ssl_ca_certs={ca}&ssl_check_hostname=false", True),
    ],
    ids=["unknown-authority", "unchecked", "known-authority", "other-name", "any-name"],
)
def test_certificate_of_the_broker_is_checked_unless_the_url_says_otherwise(
    name: str, options: str, is_let_through: bool, stack: Stack, tmp_path: Path
):
    authority = Authority()
    query = options.format(ca=authority.write_ca(tmp_path))
    with TlsFront(urlsplit(stack.redis_url).port or 0, authority.context(name)) as front:
        env = {**os.environ, **stack.settings, "WEBHOOKS_BROKER_URL": f"rediss://localhost:{front.port}/0{query}"}
        argv = [sys.executable, "-c", SEND]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 0) is is_let_through, done.stderr
    assert ("certificate verify failed" in done.stderr) is not is_let_through
    assert "insecure" not in done.stderr or "none" in options


def test_name_of_rabbitmq_is_checked(stack: Stack, tmp_path: Path):
    authority = Authority()
    with TlsFront(urlsplit(stack.redis_url).port or 0, authority.context("other.example")) as front:
        env = {**os.environ, "WEBHOOKS_BROKER_URL": f"amqps://localhost:{front.port}//"}
        env["SSL_CERT_FILE"] = str(authority.write_ca(tmp_path))  # OpenSSL's own: the system trusts this one
        argv = [sys.executable, "-c", SEND]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "address mismatch, certificate is not valid for" in done.stderr  # kombu makes 127.0.0.1 of localhost
