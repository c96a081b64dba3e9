"""``webhooks up``: run Valkey, MongoDB, a worker and Flower on one machine, with their data in one folder."""

import fcntl
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_network
from pathlib import Path
from shlex import quote

import click

from webhooks.config import Proxy, Settings
from webhooks.errors import CannotStart
from webhooks.local import servers
from webhooks.local.processes import Program, Supervisor
from webhooks.rules.encryption import Vault, new_key

#: Seconds to wait for a server that the user runs: it may be starting.
_OWN_SERVER_TIMEOUT_S = 60.0
#: Seconds to stop a worker, beyond its longest attempt.
_WORKER_GRACE_S = 10.0
#: Seconds for a server to write its memory to disk when it stops.
SERVER_GRACE_S = 30.0
_NO_FLOWER = "not installed; it comes with the extra `flower`: pip install '.[flower]'"
#: Networks that ``--allow-loopback`` allows.
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


def run_up(data_dir: Path, settings: Settings, *, flower_port: int = 5555) -> None:
    """Run everything until Ctrl-C or SIGTERM, and leave no process behind.

    A broker or MongoDB URL on this machine, without password or TLS, starts an embedded server. Any other server is
    the user's own: this waits until it answers.

    Args:
        data_dir: created if it does not exist; only one `up` can use it at a time.
        settings: for the worker, and the servers' ports.
        flower_port: on loopback.

    Raises:
        CannotStart: a port is taken, the folder is in use or not writable, or a program does not start.
        ServerMissing: a server is not installed.
    """
    data_dir = data_dir.resolve()
    with _locked(data_dir):
        redis_port = servers.loopback_port(settings.broker_url)
        mongo_port = servers.loopback_port(settings.mongodb_url)
        has_flower = find_spec("flower") is not None
        if has_flower:
            _require_free(flower_port, "Flower", f"--flower-port {servers.free_port()}")
        try:
            with Supervisor() as supervisor:
                start_servers(supervisor, data_dir, redis_port, mongo_port)
                if redis_port is None:
                    _wait_for_own("broker", settings.broker_url)
                if mongo_port is None:
                    _wait_for_own("MongoDB", settings.mongodb_url)
                settings, key_path = _with_key(settings, data_dir)
                _show(
                    broker=_describe(settings.broker_url, None if redis_port is None else "Valkey"),
                    database=_describe(settings.mongodb_url, None if mongo_port is None else "MongoDB"),
                    flower=f"http://{servers.LOOPBACK}:{flower_port}" if has_flower else _NO_FLOWER,
                    allowed=_describe_allowed(settings),
                    data=str(data_dir),
                    key=f"export WEBHOOKS_ENCRYPTION_KEY=$(cat {quote(str(key_path))})" if key_path else "your own",
                )
                env = child_env(settings)
                supervisor.start(worker_program(env, data_dir, grace_s=settings.total_timeout_s + _WORKER_GRACE_S))
                if has_flower:
                    supervisor.start(flower_program(env, data_dir, flower_port))
                supervisor.wait()
        except KeyboardInterrupt:
            click.echo("All stopped.")


def with_loopback(settings: Settings) -> Settings:
    """Return settings that allow requests to this machine."""
    missing = tuple(network for network in _LOOPBACK if network not in settings.allowed_networks)
    return settings.model_copy(update={"allowed_networks": settings.allowed_networks + missing})


def _describe_allowed(settings: Settings) -> str:
    networks = ", ".join(map(str, settings.allowed_networks))
    if not networks:
        return "requests to public addresses only; --allow-loopback or WEBHOOKS_ALLOWED_NETWORKS adds others"
    return f"requests to public addresses and {networks}"


def _with_key(settings: Settings, data_dir: Path) -> tuple[Settings, Path | None]:
    """Return settings with an encryption key, and the path of its file; None for the user's own key.

    Raises:
        CannotStart: the key's file cannot be read or written.
    """
    if settings.encryption_key:
        return settings, None
    path = data_dir / "encryption.key"
    try:
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(new_key() + "\n")
        key = path.read_text().strip()
        Vault([key])
        return settings.model_copy(update={"encryption_key": (key,)}), path
    except ValueError:
        raise CannotStart(
            f"{path} holds no key: restore it, or remove the file to create a new key; secrets that the old key sealed "
            "cannot be opened with a new one"
        ) from None
    except OSError as error:
        raise CannotStart(f"cannot keep the encryption key in {path}: {error.strerror}") from None


def start_servers(supervisor: Supervisor, data_dir: Path, redis_port: int | None, mongo_port: int | None) -> None:
    """Start the embedded servers and wait until they answer.

    Args:
        supervisor: runs them.
        data_dir: an existing folder, for each server's data and log file.
        redis_port: None for no Valkey.
        mongo_port: None for no MongoDB.

    Raises:
        CannotStart: a port is taken, or a server does not start.
        ServerMissing: a server is not installed.
    """
    programs: list[Program] = []
    # All checks come before the first start.
    for name, product, port, setting, url_of, command_of in (
        ("valkey", "Valkey", redis_port, "WEBHOOKS_BROKER_URL", servers.valkey_url, servers.valkey_command),
        ("mongod", "MongoDB", mongo_port, "WEBHOOKS_MONGODB_URL", servers.mongodb_url, servers.mongod_command),
    ):
        if port is None:
            continue
        _require_free(port, product, f"{setting}={url_of(servers.free_port())}")
        command, log_path = command_of(port, data_dir / name), data_dir / f"{name}.log"
        ready = partial(servers.answers, url_of(port))
        programs.append(
            Program(name, command, _foreign_environ(), ready=ready, grace_s=SERVER_GRACE_S, log_path=log_path)
        )
    for server in programs:
        (data_dir / server.name).mkdir(exist_ok=True)
        supervisor.start(server)


def worker_program(env: Mapping[str, str], cwd: Path, *, grace_s: float) -> Program:
    """Return a worker that logs from INFO on.

    Args:
        env: from `child_env`.
        cwd: not the user's folder: Celery imports from it first, and it may hold another ``webhooks``.
        grace_s: seconds for attempts in flight when it stops.
    """
    argv = [sys.executable, "-m", "celery", "-A", "webhooks", "worker", "--loglevel=INFO"]
    return Program("worker", argv, env, cwd=cwd, grace_s=grace_s)


def flower_program(env: Mapping[str, str], cwd: Path, port: int) -> Program:
    """Return Flower on loopback, with the arguments of `worker_program`."""
    argv = [sys.executable, "-m", "celery", "-A", "webhooks", "flower"]
    argv += [f"--address={servers.LOOPBACK}", f"--port={port}"]
    # Flower opens no secrets, so it gets no key.
    return Program("flower", argv, {k: v for k, v in env.items() if k != "WEBHOOKS_ENCRYPTION_KEY"}, cwd=cwd)


def child_env(settings: Settings) -> dict[str, str]:
    """Return the environment for a child process with the same settings in another working directory."""
    env = _foreign_environ()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if value is not None:
            env[f"WEBHOOKS_{name.upper()}"] = _as_text(value)
    return env


def make_folder(data_dir: Path) -> None:
    """Create a folder that other users cannot read and git ignores; an existing one is left as it is."""
    if not data_dir.is_dir():
        data_dir.mkdir(mode=0o700, parents=True)
        (data_dir / ".gitignore").write_text("*\n")


def _foreign_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("WEBHOOKS_")}


def _as_text(value: object) -> str:
    """Return a setting's value as an environment variable has it."""
    if isinstance(value, tuple | frozenset):
        return ",".join(str(part) for part in value)
    if isinstance(value, Proxy):
        return value.to_url()
    return str(value.resolve()) if isinstance(value, Path) else str(value)


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Create the folder and lock it until this process ends."""
    try:
        make_folder(data_dir)
        file = (data_dir / "lock").open("a+")
    except OSError as error:
        raise CannotStart(f"cannot keep data in {data_dir}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise CannotStart(
                f"`webhooks up` runs already with its data in {data_dir} (process {file.read().strip()}): "
                "stop that one, or choose another folder"
            ) from None
        except OSError as error:
            raise CannotStart(f"cannot lock {data_dir}: {error.strerror}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _require_free(port: int, who: str, remedy: str) -> None:
    if not servers.is_free(port):
        raise CannotStart(
            f"port {port} on {servers.LOOPBACK}, for {who}, is taken or not allowed: "
            f"stop the program that uses it, or set another port, such as {remedy}"
        )


def _wait_for_own(what: str, url: str) -> None:
    click.echo(f"The {what} at {servers.hosts_of(url)} is your own: waiting until it answers.")
    servers.wait_until_answers(url, _OWN_SERVER_TIMEOUT_S)


def _describe(url: str, server: str | None) -> str:
    """Describe where a server is; ``server`` is None for the user's own."""
    return f"{servers.hosts_of(url)} ({'your own' if server is None else f'{server}, started here'})"


def _show(**places: str) -> None:
    for name, place in places.items():
        click.echo(f"{name.capitalize():<9} {place}")
    click.echo(
        "To send an event: in another terminal, set the key as above, add a webhook with `webhooks add`, then run "
        "`webhooks send FILE`. Ctrl-C stops everything.\n"
    )
