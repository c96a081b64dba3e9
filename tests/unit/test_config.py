"""Settings out of the environment: parsed, checked in words without values, and what follows from them."""

from base64 import b64encode
from ipaddress import ip_network

import pytest
from pydantic import ValidationError

from webhooks.config import Proxy, Settings, find_notices, get_settings
from webhooks.errors import InvalidSettings
from webhooks.rules.signing import sign


def test_networks_are_split_at_commas(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_ALLOWED_NETWORKS", "10.0.0.0/8, fd00::/8 ,")
    assert get_settings().allowed_networks == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("value", "ports"),
    [
        ("443", {443}),
        ("80, 443 ,8000-8002", {80, 443, 8000, 8001, 8002}),
        ("1-65535", set(range(1, 65536))),
        ("7-7", {7}),
        ("", None),
        (" ", None),
    ],
)
def test_ports_are_split_at_commas(value: str, ports: set[int] | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_ALLOWED_PORTS", value)
    assert get_settings().allowed_ports == ports


@pytest.mark.parametrize(
    ("value", "proxy"),
    [
        ("", None),
        ("http://proxy.example:3128", Proxy("proxy.example", 3128)),
        ("HTTP://proxy_1:1/", Proxy("proxy_1", 1)),
        ("http://10.0.0.1:3128", Proxy("10.0.0.1", 3128)),
        ("http://[fd00::1]:3128", Proxy("fd00::1", 3128)),
        ("http://user:pass@proxy.example:3128", Proxy("proxy.example", 3128, "user:pass")),
        ("http://user@proxy.example:3128", Proxy("proxy.example", 3128, "user:")),
        ("http://us%40er:p%3Aa%2Fs%25s@proxy.example:3128", Proxy("proxy.example", 3128, "us@er:p:a/s%s")),
        ("http://user:p@ss@proxy.example:3128", Proxy("proxy.example", 3128, "user:p@ss")),
    ],
)
def test_proxy_is_taken_apart(value: str, proxy: Proxy | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_PROXY_URL", value)
    assert get_settings().proxy_url == proxy


def test_port_of_metrics_may_be_a_range(monkeypatch: pytest.MonkeyPatch):
    assert get_settings().metrics_port is None
    get_settings.cache_clear()
    monkeypatch.setenv("WEBHOOKS_METRICS_PORT", "9464-9466")
    monkeypatch.setenv("WEBHOOKS_METRICS_ADDRESS", "::")
    assert get_settings().metrics_port == {9464, 9465, 9466}
    assert get_settings().metrics_address == "::"


def test_empty_ca_bundle_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_CA_BUNDLE", "")
    assert get_settings().ca_bundle is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RETRY_DELAY_S", "soon-secret"),
        ("RETRY_DELAY_S", "-1"),
        ("MAX_RETRIES", "-1"),
        ("TOTAL_TIMEOUT_S", "0"),
        ("ALLOWED_NETWORKS", "10.0.0.0/33"),
        ("ALLOWED_NETWORKS", "10.0.0.1/8"),
        ("ALLOWED_PORTS", "0"),
        ("ALLOWED_PORTS", "65536"),
        ("ALLOWED_PORTS", "443,65535-65536"),
        ("ALLOWED_PORTS", "9-8"),
        ("ALLOWED_PORTS", "-9"),
        ("ALLOWED_PORTS", "80,"),
        ("ALLOWED_PORTS", ","),
        ("ALLOWED_PORTS", "80 443"),
        ("METRICS_PORT", "0"),
        ("METRICS_PORT", "9471-9464"),
        ("METRICS_ADDRESS", "localhost"),
        ("ALLOWED_PORTS", "8_0"),
        ("ALLOWED_PORTS", "\u0664\u0664\u0663"),
        ("ALLOWED_PORTS", "https-secret"),
        ("PROXY_URL", "https://user:secret@proxy.example:3128"),
        ("PROXY_URL", "socks5://user:secret@proxy.example:3128"),
        ("PROXY_URL", "user:secret@proxy.example:3128"),
        ("PROXY_URL", "http://user:secret@proxy.example"),
        ("PROXY_URL", "http://user:secret@proxy.example:0"),
        ("PROXY_URL", "http://user:secret@proxy.example:65536"),
        ("PROXY_URL", "http://user:secret@proxy.example:secret"),
        ("PROXY_URL", "http://user:sec/secret@proxy.example:3128"),
        ("PROXY_URL", "http://user:secret@:3128"),
        ("PROXY_URL", "http://user:secret@proxy.example:3128/path"),
        ("PROXY_URL", "http://user:secret@proxy.example:3128/?a=b"),
        ("PROXY_URL", "http://user:secret@pro xy.example:3128"),
        ("PROXY_URL", "http://user:secret@[::1:3128"),
        ("PROXY_URL", "http://user:secret%0a@proxy.example:3128"),
        ("PROXY_URL", "http://us%3aer:secret@proxy.example:3128"),
        ("PROXY_URL", "http://:secret@proxy.example:3128"),
        ("CA_BUNDLE", "/nowhere/secret.pem"),
        ("CA_BUNDLE", "/"),
        ("CA_BUNDLE", "/secret" * 1000),
        ("CA_BUNDLE", __file__),
        ("OPERATORS_URL", "ftp://host/secret"),
        ("OPERATORS_URL", "host/secret"),
        ("OPERATORS_URL", "https://"),
        ("OPERATORS_URL", "https://user:secret@host/"),
        ("OPERATORS_URL", "https://host:0/secret"),
        ("OPERATORS_URL", "https://host:65536/secret"),
        ("OPERATORS_URL", "https://ho st/secret"),
        ("OPERATORS_URL", "https://[::1/secret"),
        ("OPERATORS_SECRET", "secret"),
        ("OPERATORS_SECRET", "whsec_"),
        ("OPERATORS_SECRET", "c2VjcmV0" * 5),
        ("OPERATORS_SECRET", "whsec_secret-" + "c2VjcmV0" * 5),
        ("OPERATORS_SECRET", "whsec_" + "secrets_" * 5),
        ("OPERATORS_SECRET", "whsec_" + "c2VjcmV0" * 5 + "\n"),
        ("OPERATORS_SECRET", "whsec_" + b64encode(b"secret".ljust(23)).decode()),
        ("OPERATORS_SECRET", "whsec_" + b64encode(b"secret".ljust(65)).decode()),
        ("OPERATORS_SECRET", "whsk_" + "c2VjcmV0" * 5),
        ("BROKER_URL", ""),
        ("BROKER_URL", "redis://:sec#secret@proxy.example"),
        ("MONGODB_URL", ""),
        ("MONGODB_URL", "mongodb://user:secret@proxy.example/db?w=0"),
        ("MAX_EVENT_BYTES", "10"),
        ("CONCURRENCY", "0"),
    ],
)
def test_bad_value_is_named_and_not_repeated(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(f"WEBHOOKS_{name}", value)
    with pytest.raises(InvalidSettings) as raised:
        get_settings()
    assert str(raised.value).startswith(f"WEBHOOKS_{name}: ")
    assert "secret" not in str(raised.value)
    assert "proxy.example" not in str(raised.value)
    assert "c2VjcmV0" not in str(raised.value)  # "secret" in base64


def test_operators_url_may_lead_inside(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_OPERATORS_URL", "http://10.0.0.1:6379/hook?key=1")
    assert get_settings().operators_url == "http://10.0.0.1:6379/hook?key=1"


@pytest.mark.parametrize("size", [24, 32, 64])
def test_operators_secret_is_one_that_signs(size: int, monkeypatch: pytest.MonkeyPatch):
    secret = "whsec_" + b64encode(bytes(size)).decode()
    monkeypatch.setenv("WEBHOOKS_OPERATORS_SECRET", secret)
    assert get_settings().operators_secret == secret
    assert sign([secret], "a", 1, b"").startswith("v1,")


@pytest.mark.parametrize("name", ["OPERATORS_URL", "OPERATORS_SECRET"])
def test_empty_setting_for_operators_is_none(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(f"WEBHOOKS_{name}", "")
    assert getattr(get_settings(), name.lower()) is None


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_CONCURRENCY", "x")
    monkeypatch.setenv("WEBHOOKS_MAX_RETRIES", "y")
    with pytest.raises(InvalidSettings, match=r"WEBHOOKS_MAX_RETRIES: .*; WEBHOOKS_CONCURRENCY: "):
        get_settings()


def test_urls_with_passwords_are_not_in_the_repr(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", "redis://:secret@host/0")
    monkeypatch.setenv("WEBHOOKS_MONGODB_URL", "mongodb://user:secret@host/db")
    monkeypatch.setenv("WEBHOOKS_PROXY_URL", "http://user:secret@host:3128")
    monkeypatch.setenv("WEBHOOKS_OPERATORS_URL", "https://host/secret")
    monkeypatch.setenv("WEBHOOKS_OPERATORS_SECRET", "whsec_" + "c2VjcmV0" * 5)
    assert "secret" not in repr(get_settings())
    assert "c2VjcmV0" not in repr(get_settings())
    assert "secret" not in repr(get_settings().proxy_url)


def test_proxy_over_tls_is_refused_in_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_PROXY_URL", "https://user:secret@host:3128")
    with pytest.raises(InvalidSettings, match=r"TLS to the proxy itself is not supported$"):
        get_settings()


def test_value_is_in_no_error_of_the_class_either(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_PROXY_URL", "http://user:secret@host")
    with pytest.raises(ValidationError) as raised:
        Settings()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("WEBHOOKS_MAX_RETRY", "did you mean WEBHOOKS_MAX_RETRIES?"),
        ("webhooks_max_retry", "did you mean WEBHOOKS_MAX_RETRIES?"),
        ("WEBHOOKS_BROKER", "did you mean WEBHOOKS_BROKER_URL?"),
        ("WEBHOOKS_MONGO_URL", "did you mean WEBHOOKS_MONGODB_URL?"),
        ("WEBHOOKS_ALLOWED_PORT", "did you mean WEBHOOKS_ALLOWED_PORTS?"),
        ("WEBHOOKS_XYZ", "`webhooks settings` lists all"),
    ],
)
def test_misspelt_setting_is_found_and_the_nearest_named(name: str, remedy: str):
    assert find_notices({name: "secret"}) == [f"{name.upper()} is not a setting: {remedy}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WEBHOOKS_MAX_RETRIES", "3"),
        ("webhooks_max_retries", "3"),
        ("WEBHOOKS_TEST_REDIS_URL", "redis://host"),
        ("OTHER_MAX_RETRY", "3"),
        # What Kubernetes sets for Services named webhooks and webhooks-flower.
        ("WEBHOOKS_SERVICE_HOST", "10.0.0.1"),
        ("WEBHOOKS_SERVICE_PORT_HTTP", "80"),
        ("WEBHOOKS_PORT", "tcp://10.0.0.1:80"),
        ("WEBHOOKS_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("WEBHOOKS_FLOWER_SERVICE_PORT", "5555"),
        ("WEBHOOKS_FLOWER_PORT_5555_TCP_PROTO", "tcp"),
        ("WEBHOOKS_MONGODB_URL", "mongodb://host/db?readPreference=primary"),
    ],
)
def test_name_that_is_a_setting_or_nobodys_slip_is_no_notice(name: str, value: str):
    assert find_notices({name: value}) == []


def test_option_of_mongodbs_url_without_effect_is_a_notice():
    (notice,) = find_notices({"WEBHOOKS_MONGODB_URL": "mongodb://u:secret@host/db?readPreference=nearest"})
    assert notice.startswith("WEBHOOKS_MONGODB_URL: the option readPreference has no effect")
    assert "secret" not in notice


def test_a_claim_ends_before_a_dead_workers_message_comes_back(monkeypatch: pytest.MonkeyPatch):
    for total_s, mongodb_s in [("15", "10"), ("600", "300"), ("1", "0.5")]:
        monkeypatch.setenv("WEBHOOKS_TOTAL_TIMEOUT_S", total_s)
        monkeypatch.setenv("WEBHOOKS_MONGODB_TIMEOUT_S", mongodb_s)
        get_settings.cache_clear()
        assert get_settings().claim_s < get_settings().visibility_timeout_s


def test_retry_that_waits_in_a_worker_is_no_dead_workers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_ATOMIC_TRANSPORT", "false")
    monkeypatch.setenv("WEBHOOKS_RETRY_DELAY_S", "3600")
    assert get_settings().visibility_timeout_s > 3600
