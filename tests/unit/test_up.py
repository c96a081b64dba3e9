"""What `webhooks up` hands to the processes that it runs."""

from pathlib import Path
from shutil import copy

import certifi
import pytest

from webhooks.config import Settings
from webhooks.errors import CannotStart
from webhooks.local import up
from webhooks.rules.encryption import Vault, new_key


def test_child_env_carries_every_setting_to_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy(certifi.where(), tmp_path / "ca.pem")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEBHOOKS_MAX_RETRIES", "9")
    monkeypatch.setenv("OTHER", "kept")
    settings = Settings.model_validate(
        {
            "broker_url": "redis://127.0.0.1:7001/0",
            "retry_delay_s": 0.5,
            "max_retries": 0,
            "allowed_networks": "127.0.0.0/8, ::1/128",
            "ca_bundle": "ca.pem",
            "allowed_ports": "80,8000-8002",
            "proxy_url": "http://us%2Fer:p%40ss@[::1]:3128",
            "encryption_key": f"{new_key()},{new_key()}",
        }
    )
    env = up.child_env(settings)
    assert env["OTHER"] == "kept"
    assert env["WEBHOOKS_CA_BUNDLE"] == str(tmp_path.resolve() / "ca.pem")

    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings.model_copy(update={"ca_bundle": tmp_path.resolve() / "ca.pem"})


def test_child_env_drops_a_setting_that_is_unset_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings.model_validate({"ca_bundle": None})
    monkeypatch.setenv("WEBHOOKS_CA_BUNDLE", str(tmp_path))
    assert "WEBHOOKS_CA_BUNDLE" not in up.child_env(settings)


def test_make_folder_keeps_git_out_of_a_new_folder_only(tmp_path: Path) -> None:
    up.make_folder(tmp_path)
    assert not (tmp_path / ".gitignore").exists()
    up.make_folder(tmp_path / "data")
    assert (tmp_path / "data" / ".gitignore").read_text() == "*\n"
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


def test_what_is_allowed_is_said_and_loopback_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = up._describe_allowed(Settings())
    assert "--allow-loopback" in text
    assert "WEBHOOKS_ALLOWED_NETWORKS" in text
    monkeypatch.setenv("WEBHOOKS_ALLOWED_NETWORKS", "127.0.0.0/8")
    settings = up.with_loopback(Settings())
    assert up.child_env(settings)["WEBHOOKS_ALLOWED_NETWORKS"] == "127.0.0.0/8,::1/128"
    assert up._describe_allowed(settings) == "requests to public addresses and 127.0.0.0/8, ::1/128"


def test_flower_program_listens_on_loopback(tmp_path: Path) -> None:
    argv = up.flower_program({}, tmp_path, 7002).argv
    assert {"--address=127.0.0.1", "--port=7002"} <= set(argv)


@pytest.mark.parametrize("content", [b"", b"\n", b"junk", b"\xff"])
def test_key_file_that_holds_no_key_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "encryption.key"
    path.write_bytes(content)
    with pytest.raises(CannotStart, match="holds no key"):
        up._with_key(Settings.model_validate({}), tmp_path)


def test_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    (first, path), (second, _) = (up._with_key(Settings.model_validate({}), tmp_path) for _ in range(2))
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o600
    assert first.encryption_key == second.encryption_key
    assert Vault(first.encryption_key).has_key
    own = Settings.model_validate({"encryption_key": new_key()})
    assert up._with_key(own, tmp_path) == (own, None)


def test_only_the_worker_gets_the_key(tmp_path: Path) -> None:
    env = {"WEBHOOKS_ENCRYPTION_KEY": "k", "WEBHOOKS_BROKER_URL": "u"}
    assert "WEBHOOKS_ENCRYPTION_KEY" in up.worker_program(env, tmp_path, grace_s=1).env
    assert dict(up.flower_program(env, tmp_path, 1).env) == {"WEBHOOKS_BROKER_URL": "u"}
