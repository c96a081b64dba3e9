"""The transport's own rules, and what of kombu's insides it stands on."""

import inspect
import re
from datetime import UTC, datetime, timedelta, timezone
from importlib.resources import files
from typing import Any

import celery.app.amqp
import kombu.connection
import pytest
from kombu.transport import redis as plain
from kombu.transport import virtual

from webhooks.config import Settings
from webhooks.transport import holder, messages, scripts
from webhooks.transport.acks import QoS
from webhooks.transport.channel import Channel
from webhooks.transport.connection import AMQP, OPTION, Connection, Transport
from webhooks.transport.poller import Poller

URL = "redis://:secret@127.0.0.1:9/3"

#: What is overridden or called, with the parameters it is relied on to have. A kombu that moves one fails here.
INSIDES: list[tuple[Any, str, list[str]]] = [
    (plain.Channel, "_put", ["self", "queue", "message", "kwargs"]),
    (plain.Channel, "_brpop_start", ["self", "timeout"]),
    (plain.Channel, "_brpop_read", ["self", "options"]),
    (plain.Channel, "_flush_brpop_reauth", ["self"]),
    (plain.Channel, "_on_connection_disconnect", ["self", "connection"]),
    (plain.Channel, "_create_client", ["self", "asynchronous"]),
    (plain.Channel, "_disconnect_pools", ["self"]),
    (plain.Channel, "_close_clients", ["self"]),
    (plain.Channel, "_purge", ["self", "queue"]),
    (plain.Channel, "_delete", ["self", "queue", "exchange", "routing_key", "pattern", "args", "kwargs"]),
    (plain.Channel, "_size", ["self", "queue"]),
    (plain.Channel, "_has_queue", ["self", "queue", "kwargs"]),
    (plain.Channel, "_q_for_pri", ["self", "queue", "pri"]),
    (plain.Channel, "priority", ["self", "n"]),
    (plain.Channel, "close", ["self"]),
    (virtual.Channel, "decode_body", ["self", "body", "encoding"]),
    (plain.QoS, "append", ["self", "message", "delivery_tag"]),
    (plain.QoS, "ack", ["self", "delivery_tag"]),
    (plain.QoS, "reject", ["self", "delivery_tag", "requeue"]),
    (plain.QoS, "restore_unacked", ["self", "client"]),
    (plain.QoS, "restore_visible", ["self", "start", "num", "interval"]),
    (plain.MultiChannelPoller, "on_poll_start", ["self"]),
    (plain.MultiChannelPoller, "discard", ["self", "channel"]),
    (plain.MultiChannelPoller, "close", ["self"]),
    (plain.Transport, "register_with_event_loop", ["self", "connection", "loop"]),
    (virtual.Channel, "basic_consume", ["self", "queue", "no_ack", "callback", "consumer_tag", "kwargs"]),
    (virtual.Channel, "basic_get", ["self", "queue", "no_ack", "kwargs"]),
    (virtual.Channel, "close", ["self"]),
    (virtual.Channel, "_lookup", ["self", "exchange", "routing_key", "default"]),
    (virtual.Channel, "_get_message_priority", ["self", "message", "reverse"]),
    (virtual.QoS, "append", ["self", "message", "delivery_tag"]),
    (virtual.QoS, "ack", ["self", "delivery_tag"]),
    (virtual.QoS, "_flush", ["self"]),
    (virtual.QoS, "can_consume", ["self"]),
    (virtual.QoS, "can_consume_max_estimate", ["self"]),
    (virtual.QoS, "restore_unacked_once", ["self", "stderr"]),
    (kombu.connection.Connection, "get_transport_cls", ["self"]),
    (kombu.connection.Connection, "collect", ["self", "socket_timeout"]),
    (kombu.connection.Connection, "Pool", ["self", "limit", "kwargs"]),
    (kombu.connection.Connection, "_info", ["self", "resolve"]),
    (kombu.connection.ConnectionPool, "new", ["self"]),
]

#: Attributes that are read or set, by whose code they must be used for this to go on working.
ATTRIBUTES: list[tuple[Any, list[str]]] = [
    (
        plain,
        ["_in_poll", "_brpop_sent_at", "_queue_cycle", "_closing", "_expires", "active_queues", "priority_steps"],
    ),
    (plain, ["unacked_key", "unacked_index_key", "visibility_timeout", "global_keyprefix", "_publish_batch"]),
    (plain, ["_channels", "active_fanout_queues", "brpop_timeout", "connection_errors", "sep"]),
    (virtual.base, ["_delivered", "_dirty", "_active_queues", "_avail_channels", "channels", "do_restore", "_qos"]),
    (virtual.base, ["_raw", "properties", "delivery_tag", "delivery_info", "closed"]),
    (kombu.connection, ["_collect", "transport_options", "get_transport_cls"]),
]


@pytest.mark.parametrize(("owner", "name", "parameters"), INSIDES, ids=lambda value: getattr(value, "__name__", value))
def test_kombu_still_has_what_is_overridden_or_called(owner: Any, name: str, parameters: list[str]):
    assert list(inspect.signature(vars(owner)[name]).parameters) == parameters


@pytest.mark.parametrize(("module", "names"), ATTRIBUTES)
def test_kombu_still_uses_what_is_read_or_set(module: Any, names: list[str]):
    source = inspect.getsource(module)
    assert [name for name in names if name not in source] == []


@pytest.mark.parametrize("ours", [Channel, QoS, Poller, Transport])
def test_each_override_is_named_above(ours: type):
    named = {name for _, name, _ in INSIDES}
    base = ours.__mro__[1]
    overridden = {name for name, value in vars(ours).items() if inspect.isfunction(value) and hasattr(base, name)}
    assert overridden - named <= {"__init__"}


def test_kombu_starts_a_take_where_it_started_brpop():
    source = inspect.getsource(plain.MultiChannelPoller)
    assert "channel._brpop_start()" in source
    assert "_brpop_read" in inspect.getsource(plain.Channel.__init__)


def test_celery_makes_connections_with_ours():
    assert issubclass(AMQP, celery.app.amqp.AMQP)
    assert celery.app.amqp.AMQP.Connection is kombu.connection.Connection
    assert "self.amqp.Connection(" in inspect.getsource(celery.app.base)


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        (URL, {OPTION: True}, Transport),
        ("rediss://127.0.0.1:9/3?ssl_cert_reqs=required", {OPTION: True}, Transport),
        (URL, {OPTION: False}, plain.Transport),
        (URL, {}, plain.Transport),
        (URL, None, plain.Transport),
        ("memory://", {OPTION: True}, None),
    ],
)
def test_option_chooses_the_transport_for_redis_alone(url: str, options: dict[str, Any] | None, expected: Any):
    chosen = Connection(url, transport_options=options).get_transport_cls()
    assert chosen is expected or (expected is None and not issubclass(chosen, plain.Transport))


def test_url_and_tls_stay_as_the_user_wrote_them():
    assert Connection(URL, transport_options={OPTION: True}).as_uri(include_password=True) == URL
    secure = Connection("rediss://h:9/0?ssl_cert_reqs=required&ssl_ca_certs=f", transport_options={OPTION: True})
    assert secure.as_uri() == "rediss://:**@h:9/0"
    assert isinstance(secure.ssl, dict)
    assert secure.ssl["ssl_ca_certs"] == "f"
    clone = secure.clone()
    assert (clone.get_transport_cls(), clone.ssl) == (Transport, secure.ssl)


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        (NOON.isoformat(), NOON.timestamp()),
        (NOON.astimezone(timezone(timedelta(hours=5))).isoformat(), NOON.timestamp()),
        ("2026-01-01T12:00:00Z", NOON.timestamp()),
        ("2026-01-01T12:00:00", NOON.timestamp()),
        ("soon", None),
        (None, None),
        (5, None),
    ],
)
def test_eta_is_read_as_celery_writes_it(eta: object, expected: float | None):
    message = {"headers": {"eta": eta, "id": "x"}}
    assert messages.due_at(message) == expected
    without = messages.without_eta(message)
    assert message["headers"]["eta"] == eta  # publishing may be tried again with it
    assert without["headers"] == ({"id": "x"} if expected is not None else {"eta": eta, "id": "x"})


@pytest.mark.parametrize("message", [{}, {"headers": None}, {"headers": {}}])
def test_message_without_headers_has_no_eta(message: dict[str, Any]):
    assert messages.due_at(message) is None
    assert messages.without_eta(message) is message


def test_visibility_timeout_counts_the_wait_of_a_retry_only_where_a_worker_waits():
    atomic, plain_one = Settings(), Settings(atomic_transport=False)
    assert plain_one.visibility_timeout_s - atomic.visibility_timeout_s == atomic.retry_delay_s


# ── Scripts ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_each_script_is_whole():
    lua = files("webhooks.transport") / "lua"
    names = {entry.name for entry in lua.iterdir() if entry.is_file()}
    assert len(names) == len({*scripts.SHAS, scripts.COUNT_QUEUES})
    for script in (*scripts.SHAS, scripts.COUNT_QUEUES):
        assert script.startswith("#!lua")
        assert "--#include" not in script
        assert not re.search(r"\{[A-Z_]+\}", script)


def test_scripts_constant_is_the_value_that_python_has():
    assert f"now + {holder.LEASE_S}" in scripts.LEASE
    assert "{LEASE_S}" not in scripts.LEASE
