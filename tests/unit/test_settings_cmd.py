"""``webhooks settings``: every setting, with its unit and where it comes from, and nothing of a secret."""

import json
from base64 import b64encode
from typing import Any

import certifi
import pytest
from click.testing import CliRunner

from webhooks.cli import cli
from webhooks.config import Settings
from webhooks.rules.encryption import fingerprint, new_key


def show() -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return what the command shows as JSON, and its lines; both by the settings' names."""
    as_json, as_text = (CliRunner().invoke(cli, ["settings", *options]) for options in (["--json"], []))
    assert (as_json.exit_code, as_text.exit_code) == (0, 0), as_json.output + as_text.output
    rows = [json.loads(line) for line in as_json.stdout.splitlines()]
    return {row["name"]: row for row in rows}, {line.split()[0]: line for line in as_text.stdout.splitlines()}


def test_every_setting_is_shown_with_unit_and_source(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_RETRY_DELAY_S", "0.5")
    monkeypatch.setenv("webhooks_max_retries", "3")
    rows, lines = show()
    assert list(rows) == list(lines) == [f"WEBHOOKS_{name.upper()}" for name in Settings.model_fields]
    assert rows["WEBHOOKS_RETRY_DELAY_S"] == {
        "name": "WEBHOOKS_RETRY_DELAY_S",
        "value": 0.5,
        "unit": "seconds",
        "from": "environment",
    }
    assert rows["WEBHOOKS_MAX_RETRIES"]["from"] == "environment"
    assert rows["WEBHOOKS_TOTAL_TIMEOUT_S"]["from"] == "default"
    assert rows["WEBHOOKS_ATOMIC_TRANSPORT"]["value"] is True
    assert rows["WEBHOOKS_ALLOWED_PORTS"]["value"] is None
    assert lines["WEBHOOKS_RETRY_DELAY_S"].split() == ["WEBHOOKS_RETRY_DELAY_S", "0.5", "seconds", "environment"]
    assert lines["WEBHOOKS_TOTAL_TIMEOUT_S"].split() == ["WEBHOOKS_TOTAL_TIMEOUT_S", "15", "seconds", "default"]
    assert lines["WEBHOOKS_CA_BUNDLE"].split() == ["WEBHOOKS_CA_BUNDLE", "not", "set", "default"]
    assert {row["unit"] for row in rows.values()} == {"seconds", "bytes", "days", None}


def test_values_are_shown_as_they_are_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_ALLOWED_NETWORKS", "fd00::/8, 10.0.0.0/8")
    monkeypatch.setenv("WEBHOOKS_ALLOWED_PORTS", "8000-8002,443,80")
    monkeypatch.setenv("WEBHOOKS_CA_BUNDLE", certifi.where())
    rows, lines = show()
    assert rows["WEBHOOKS_ALLOWED_NETWORKS"]["value"] == ["10.0.0.0/8", "fd00::/8"]
    assert rows["WEBHOOKS_ALLOWED_PORTS"]["value"] == [80, 443, 8000, 8001, 8002]
    assert rows["WEBHOOKS_CA_BUNDLE"]["value"] == certifi.where()
    assert " 10.0.0.0/8,fd00::/8 " in lines["WEBHOOKS_ALLOWED_NETWORKS"]
    assert " 80,443,8000-8002 " in lines["WEBHOOKS_ALLOWED_PORTS"]


def test_secrets_are_left_out(monkeypatch: pytest.MonkeyPatch):
    key, secret = new_key(), "whsec_" + b64encode(bytes(32)).decode()
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", "rediss://user:secret@host:1/2?ssl_certfile=/secret.pem")
    monkeypatch.setenv("WEBHOOKS_MONGODB_URL", "mongodb://user:secret@a,b/db?authMechanismProperties=secret:1")
    monkeypatch.setenv("WEBHOOKS_PROXY_URL", "http://user:secret@proxy.example:3128")
    monkeypatch.setenv("WEBHOOKS_OPERATORS_URL", "https://chat.example:8443/secret?key=secret")
    monkeypatch.setenv("WEBHOOKS_OPERATORS_SECRET", secret)
    monkeypatch.setenv("WEBHOOKS_ENCRYPTION_KEY", key)
    rows, lines = show()
    shown = {name.removeprefix("WEBHOOKS_").lower(): row["value"] for name, row in rows.items()}
    assert shown["broker_url"] == "rediss://host:1/2"
    assert shown["mongodb_url"] == "mongodb://a,b/db"
    assert shown["proxy_url"] == "proxy.example:3128"
    assert shown["operators_url"] == "https://chat.example:8443"
    assert shown["operators_secret"] == [f"sha256:{fingerprint(secret)}"]
    assert shown["encryption_key"] == [f"sha256:{fingerprint(key)}"]
    for text in (json.dumps(rows), "\n".join(lines.values())):
        assert not any(part in text for part in ("secret@", "/secret", "key=", "user", key, secret))


def test_misspelt_setting_is_told_once_by_each_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_MAX_RETRY", "1")
    for arguments in (["settings", "--json"], ["secret", "new-key"]):
        result = CliRunner().invoke(cli, arguments)
        assert result.stderr == "webhooks: WEBHOOKS_MAX_RETRY is not a setting: did you mean WEBHOOKS_MAX_RETRIES?\n"
