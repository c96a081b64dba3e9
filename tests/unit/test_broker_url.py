"""The broker's URL: what can be used, what is made of it, and refusals that repeat nothing of it."""

import ssl

import pytest
import redis
from kombu.connection import Connection
from kombu.utils.url import parse_url

from webhooks.errors import ENCODE_HINT
from webhooks.rules.broker_url import read_broker_url, tls_options


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://", "redis://"),
        ("redis://host", "redis://host"),
        ("  redis://host/0\n", "redis://host/0"),
        ("REDIS://host/0", "redis://host/0"),
        ("redis://[::1]:6379/1", "redis://[::1]:6379/1"),
        ("redis://user:p%23%40w@host/0", "redis://user:p%23%40w@host/0"),
        ("redis://:p@:w@host/0", "redis://:p@:w@host/0"),  # not ambiguous: kombu and redis-py read the same
        ("valkey://:p%23w@host:6380/2", "redis://:p%23w@host:6380/2"),
        ("valkeys://host/0", "rediss://host/0?ssl_cert_reqs=required"),
        ("rediss://:pw@host/0", "rediss://:pw@host/0?ssl_cert_reqs=required"),
        ("rediss://host?ssl_cert_reqs=CERT_NONE", "rediss://host?ssl_cert_reqs=none"),
        ("rediss://host/0?ssl_cert_reqs=optional", "rediss://host/0?ssl_cert_reqs=optional"),
        (
            "rediss://host/0?ssl_ca_certs=/a/ca%20b.pem&ssl_check_hostname=False",
            "rediss://host/0?ssl_cert_reqs=required&ssl_ca_certs=/a/ca+b.pem&ssl_check_hostname=false",
        ),
        ("redis+socket:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("redis+socket:///run/redis.sock?virtual_host=2", "redis+socket:///run/redis.sock?virtual_host=2"),
        ("amqp://guest:guest@host:5672//", "amqp://guest:guest@host:5672//"),
        ("amqps://host/vhost", "amqps://host/vhost"),
        ("pyamqp://host", "pyamqp://host"),
        ("amqp://u:p@a//;amqp://u:p@b//", "amqp://u:p@a//;amqp://u:p@b//"),
    ],
)
def test_url_is_read(url: str, read: str):
    assert read_broker_url(url) == read
    assert read_broker_url(read) == read
    with Connection(read) as connection:
        assert connection.transport_cls


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("secret", "must be redis://"),
        ("host:6379", "must be redis://"),
        ("nonsense://user:secret@host/0", "must be redis://"),
        ("kombu.transport.redis:Transport://secret@host", "must be redis://"),
        ("sqs://user:secret@host", "must be redis://"),
        ("sentinel://:secret@host:26379", "sentinel:// is not supported"),
        ("memory://", "memory:// loses every event"),
        ("redis://:se#cret@host/0", ENCODE_HINT),
        ("redis://:se/cret@host/0", ENCODE_HINT),
        ("redis://:1234/secret@host/0", ENCODE_HINT),
        ("redis://:se?cret@host/0", ENCODE_HINT),
        ("redis://:se;cret@host/0", ENCODE_HINT),
        ("redis://:se[cret@host/0", ENCODE_HINT),
        ("redis://:se cret@host/0", ENCODE_HINT),
        ("redis://:se\ncret@host/0", ENCODE_HINT),
        ("redis://:se\u200bcret@host/0", ENCODE_HINT),
        ("redis://host:secret/0", ENCODE_HINT),
        ("redis://host:0/0", ENCODE_HINT),
        ("redis://host:65536/0", ENCODE_HINT),
        ("redis://host/secret", "database that is not a number"),
        ("redis://a/0;redis://b/0", "set one Redis"),
        ("redis://host/0?socket_timeout=secret", "the option socket_timeout, which is not supported: leave it out"),
        ("redis://host/0?transport=secret.module:Class", "the option transport, which"),
        ("redis://host/0?SECRET-1", "an option, which"),
        ("redis://host/0?ssl_cert_reqs=none", "set rediss://"),
        ("rediss://host/0?ssl_cert_reqs=secret", "required, optional or none"),
        ("rediss://host/0?ssl_check_hostname=secret", "neither true nor false"),
        ("rediss://host/0?ssl_ca_certs=", "no value for the option ssl_ca_certs"),
        ("rediss://host/0?ssl_ca_certs", "no value for the option ssl_ca_certs"),
        ("redis+socket://", "must be redis+socket:///PATH"),
        ("redis+socket:///run/redis.sock?secret=1", "must be redis+socket:///PATH"),
        ("amqp://user:se/cret@host//", ENCODE_HINT),
        ("amqp://user:se?cret@host//", ENCODE_HINT),
        ("amqp://user:se;cret@host//", ENCODE_HINT),
        ("amqp://user:pw@host//;secret", "holds a ;"),
        ("amqp://host//?heartbeat=secret", "options after a ?"),
    ],
)
def test_url_that_cannot_be_used_is_refused_without_repeating_it(url: str, reason: str):
    with pytest.raises(ValueError, match=r"^.+$") as raised:
        read_broker_url(url)
    text = str(raised.value)
    assert reason in text
    assert "\n" not in text
    assert not any(part in text for part in ("secret", "cret", "user:"))
    assert raised.value.__cause__ is None


def test_memory_is_a_broker_for_tests():
    assert read_broker_url("memory://", is_test=True) == "memory://"


@pytest.mark.parametrize(
    ("url", "mode", "checks_name"),
    [
        ("rediss://host/0", ssl.CERT_REQUIRED, True),
        ("valkeys://host/0", ssl.CERT_REQUIRED, True),
        ("rediss://host/0?ssl_ca_certs=/a.pem", ssl.CERT_REQUIRED, True),
        ("rediss://host/0?ssl_check_hostname=false", ssl.CERT_REQUIRED, False),
        ("rediss://host/0?ssl_cert_reqs=none", ssl.CERT_NONE, False),
    ],
)
def test_certificates_are_checked_alike_by_kombu_redis_and_flower(url: str, mode: ssl.VerifyMode, checks_name: bool):
    read = read_broker_url(url)
    kombus, flowers = parse_url(read)["ssl"], tls_options(read)
    assert kombus == flowers
    assert flowers is not None
    assert flowers["ssl_cert_reqs"] is mode
    for connection in (redis.SSLConnection(**kombus), redis.Redis.from_url(read).connection_pool.make_connection()):
        assert connection.cert_reqs is mode  # pyright: ignore[reportAttributeAccessIssue]
        assert connection.check_hostname is checks_name  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("url", ["redis://host/0", "amqp://host//", "amqps://a//;amqps://b//"])
def test_broker_without_tls_has_no_options(url: str):
    assert tls_options(url) is None


def test_rabbitmq_must_show_a_certificate_for_the_urls_host():
    assert tls_options("amqps://host//") == {"server_hostname": None}
