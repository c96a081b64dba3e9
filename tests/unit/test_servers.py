"""Where the servers are found, and which URLs are ours to serve."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from webhooks.errors import ServerMissing
from webhooks.local import servers


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    yield
    servers.find_valkey.cache_clear()
    servers.find_mongod.cache_clear()


@pytest.fixture
def path_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder of the PATH, on a machine that has no wheel of a server."""
    servers.find_valkey.cache_clear()
    servers.find_mongod.cache_clear()
    monkeypatch.setattr(servers, "find_spec", lambda package: None)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def put_program(path: Path, script: str = "exit 0", mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_find_valkey_without_the_wheel_looks_on_the_path(path_folder: Path, name: str) -> None:
    program = put_program(path_folder / name)
    assert servers.find_valkey() == program


def test_find_mongod_without_the_wheel_looks_on_the_path(path_folder: Path) -> None:
    program = put_program(path_folder / "mongod")
    assert servers.find_mongod() == program


def test_find_mongod_prefers_the_wheel_and_restores_its_exec_bit(
    path_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_program(path_folder / "mongod")
    in_wheel = put_program(tmp_path / "site" / "fiftyone" / "db" / "bin" / "mongod", mode=0o644)
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path / "site")

    assert servers.find_mongod() == in_wheel
    assert in_wheel.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize(
    ("find", "server", "program"),
    [(servers.find_valkey, "Valkey", "redis-server"), (servers.find_mongod, "MongoDB", "mongod")],
    ids=["valkey", "mongod"],
)
def test_find_with_nothing_there_says_what_is_missing_and_how_to_get_it(
    path_folder: Path, find, server: str, program: str
) -> None:
    with pytest.raises(ServerMissing) as caught:
        find()
    text = str(caught.value)
    assert "\n" not in text
    assert server in text
    assert "pip install '.[embedded]' in this project" in text
    assert program in text


def test_find_of_a_program_that_cannot_run_says_why(path_folder: Path) -> None:
    # A slim container has no libcurl, which the wheel's mongod needs.
    put_program(path_folder / "mongod", "echo 'libcurl.so.4: cannot open shared object file' >&2; exit 127")
    with pytest.raises(ServerMissing, match=r"mongod does not run: libcurl\.so\.4: cannot open"):
        servers.find_mongod()


def test_valkey_command_keeps_data_and_refuses_to_drop_messages(path_folder: Path, tmp_path: Path) -> None:
    program = put_program(path_folder / "valkey-server")
    command = servers.valkey_command(7001, tmp_path)
    assert command[0] == str(program)
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--bind"] == "127.0.0.1"
    assert options["--port"] == "7001"
    assert options["--dir"] == str(tmp_path)
    assert (options["--appendonly"], options["--appendfsync"]) == ("yes", "everysec")
    assert options["--maxmemory-policy"] == "noeviction"


def test_mongod_command_names_a_replica_set_only_where_asked(path_folder: Path, tmp_path: Path) -> None:
    put_program(path_folder / "mongod")
    alone = servers.mongod_command(7002, tmp_path)
    assert alone[alone.index("--bind_ip") + 1] == "127.0.0.1"
    assert alone[alone.index("--dbpath") + 1] == str(tmp_path)
    assert "--replSet" not in alone
    assert servers.mongod_command(7002, tmp_path, replica_set="rs0") == [*alone, "--replSet", "rs0"]


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("redis://127.0.0.1:6380/0", 6380),
        ("redis://localhost", 6379),
        ("mongodb://127.0.0.1/webhooks", 27017),
        ("mongodb://localhost:27018/webhooks?w=majority", 27018),
    ],
)
def test_loopback_port_of_a_server_that_we_can_run(url: str, port: int) -> None:
    assert servers.loopback_port(url) == port


@pytest.mark.parametrize(
    "url",
    [
        "redis://broker.example:6379/0",
        "redis://127.0.0.2:6379/0",
        "redis://:password@127.0.0.1:6379/0",
        "rediss://127.0.0.1:6379/0",
        "redis+socket:///run/redis.sock",
        "amqp://127.0.0.1//",
        "mongodb://user:password@127.0.0.1/webhooks",
        "mongodb://127.0.0.1:27017,127.0.0.1:27018/webhooks",
        "mongodb://127.0.0.1/webhooks?replicaSet=rs0",
        "mongodb://127.0.0.1/webhooks?tls=true",
        "mongodb+srv://db.example/webhooks",
        "redis://127.0.0.1:99999/0",
    ],
)
def test_loopback_port_of_a_server_that_only_its_owner_can_run(url: str) -> None:
    assert servers.loopback_port(url) is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "127.0.0.1:6379"),
        ("amqp://user:p@ss@broker.example//", "broker.example"),
        ("mongodb://user:secret@a.example:1,b.example:2/webhooks?x=y", "a.example:1,b.example:2"),
        ("mongodb://a.example?x=me@home", "a.example"),
    ],
)
def test_hosts_of_shows_no_password(url: str, shown: str) -> None:
    assert servers.hosts_of(url) == shown
