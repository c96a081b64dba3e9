"""``webhooks up``: the whole product on a developer's own machine, with its data in one folder.

Owns what runs there (Valkey, MongoDB, a worker, Flower), where, and in which order. How processes are kept running is
`processes`' business, what the servers are `servers`'. Called by `cli`; the demo builds its own from the same
parts.
"""

import fcntl
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

#: Seconds within which a server that somebody else runs has to answer: it may be starting just now.
FOREIGN_SERVER_TIMEOUT_S = 60.0
#: Seconds that a worker gets beyond its longest attempt to write what it has in hand before it is killed.
WORKER_GRACE_S = 10.0
#: Seconds that a server gets to write its memory to disk before it is killed.
SERVER_GRACE_S = 30.0
_NO_FLOWER = "not installed; it comes with the extra `flower`: pip install '.[flower]'"
#: What ``--allow-loopback`` allows.
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


def run_up(data_dir: Path, settings: Settings, *, flower_port: int = 5555) -> None:
    """Run everything until Ctrl-C or SIGTERM, and leave no process behind.

    A broker or MongoDB URL that names a server on this machine, without password or TLS, is a server to start here;
    any other one is the user's own, and only waited for.

    Args:
        data_dir: made if it does not exist; one `up` at a time may use it.
        settings: which ports, and everything else that the worker does.
        flower_port: on loopback.

    Raises:
        CannotStart: a port is taken, the folder is in use or cannot be written, or a program does not come up.
        ServerMissing: a server is not installed.
    """
    data_dir = data_dir.resolve()
    with _locked(data_dir):
        redis_port = servers.loopback_port(settings.broker_url)
        mongo_port = servers.loopback_port(settings.mongodb_url)
        has_flower = find_spec("flower") is not None
        if has_flower:
            _require_free(flower_port, "Flower", f"--flower-port {servers.free_port()}")
        # Ctrl-C is how people end it, and no error.
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
                supervisor.start(worker_program(env, data_dir, grace_s=settings.total_timeout_s + WORKER_GRACE_S))
                if has_flower:
                    supervisor.start(flower_program(env, data_dir, flower_port))
                supervisor.wait()
        except KeyboardInterrupt:
            click.echo("All stopped.")


def with_loopback(settings: Settings) -> Settings:
    """Return settings with which requests may go to this machine."""
    missing = tuple(network for network in _LOOPBACK if network not in settings.allowed_networks)
    return settings.model_copy(update={"allowed_networks": settings.allowed_networks + missing})


def _describe_allowed(settings: Settings) -> str:
    networks = ", ".join(map(str, settings.allowed_networks))
    if not networks:
        return "requests to public addresses alone; --allow-loopback or WEBHOOKS_ALLOWED_NETWORKS adds others"
    return f"requests to public addresses and {networks}"


def _with_key(settings: Settings, data_dir: Path) -> tuple[Settings, Path | None]:
    """Return settings with a key for webhooks' secrets: the user's own, else one that is kept with the data.

    Returns:
        The settings, and where the key is kept; None where it is the user's own.

    Raises:
        CannotStart: it cannot be kept.
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
            f"{path} holds no key: put back the one that was there, or remove the file for a new one; what the old one "
            "sealed cannot be opened then"
        ) from None
    except OSError as error:
        raise CannotStart(f"cannot keep the key of secrets in {path}: {error.strerror}") from None


def start_servers(supervisor: Supervisor, data_dir: Path, redis_port: int | None, mongo_port: int | None) -> None:
    """Start the embedded servers and wait until they answer.

    Args:
        supervisor: runs them.
        data_dir: a folder that exists; each server gets a folder and a log file in it.
        redis_port: for Valkey; None for no Valkey.
        mongo_port: for MongoDB; None for no MongoDB.

    Raises:
        CannotStart: a port is taken, or a server does not come up.
        ServerMissing: a server is not installed.
    """
    programs: list[Program] = []
    # Before any is started: what is missing or taken is said at once.
    if redis_port is not None:
        remedy = f"WEBHOOKS_BROKER_URL={servers.valkey_url(servers.free_port())}"
        _require_free(redis_port, "Valkey", remedy)
        command = servers.valkey_command(redis_port, data_dir / "valkey")
        programs.append(_server("valkey", command, data_dir, servers.valkey_url(redis_port)))
    if mongo_port is not None:
        remedy = f"WEBHOOKS_MONGODB_URL={servers.mongodb_url(servers.free_port())}"
        _require_free(mongo_port, "MongoDB", remedy)
        command = servers.mongod_command(mongo_port, data_dir / "mongod")
        programs.append(_server("mongod", command, data_dir, servers.mongodb_url(mongo_port)))
    for server in programs:
        (data_dir / server.name).mkdir(exist_ok=True)
        supervisor.start(server)


def worker_program(env: Mapping[str, str], cwd: Path, *, grace_s: float) -> Program:
    """Describe a worker as in production, but with its log on the screen from INFO on.

    Args:
        env: see `child_env`.
        cwd: a folder of our own. Celery imports from the current one first, and the user's may hold another
            ``webhooks``.
        grace_s: seconds that attempts in flight may take when it stops.
    """
    argv = [sys.executable, "-m", "celery", "-A", "webhooks", "worker", "--loglevel=INFO"]
    return Program("worker", argv, env, cwd=cwd, grace_s=grace_s)


def flower_program(env: Mapping[str, str], cwd: Path, port: int) -> Program:
    """Describe Flower on loopback. Arguments as for `worker_program`."""
    argv = [sys.executable, "-m", "celery", "-A", "webhooks", "flower"]
    argv += [f"--address={servers.LOOPBACK}", f"--port={port}"]
    # It shows what others send, and needs no secret for that.
    return Program("flower", argv, {k: v for k, v in env.items() if k != "WEBHOOKS_ENCRYPTION_KEY"}, cwd=cwd)


def child_env(settings: Settings) -> dict[str, str]:
    """Give the environment of a child process that is to read the same settings from another folder."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("WEBHOOKS_")}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if value is not None:
            env[f"WEBHOOKS_{name.upper()}"] = _as_text(value)
    return env


def make_folder(data_dir: Path) -> None:
    """Make a folder for data, which others may not read (payloads, secrets) and git is not to take up.

    One that exists is left as it is.

    Raises:
        OSError: it cannot be made.
    """
    if not data_dir.is_dir():
        data_dir.mkdir(mode=0o700, parents=True)
        (data_dir / ".gitignore").write_text("*\n")


def _as_text(value: object) -> str:
    """Write a setting as an environment variable has it."""
    if isinstance(value, tuple | frozenset):
        return ",".join(str(part) for part in value)
    if isinstance(value, Proxy):
        return value.to_url()
    return str(value.resolve()) if isinstance(value, Path) else str(value)


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Make the folder and hold it; the system lets go of it however this process ends."""
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


def _server(name: str, command: list[str], data_dir: Path, url: str) -> Program:
    return Program(
        name,
        command,
        {name: value for name, value in os.environ.items() if not name.startswith("WEBHOOKS_")},
        ready=lambda: servers.answers(url),
        grace_s=SERVER_GRACE_S,
        log_path=data_dir / f"{name}.log",
    )


def _require_free(port: int, who: str, remedy: str) -> None:
    if not servers.is_free(port):
        raise CannotStart(
            f"port {port} on {servers.LOOPBACK}, meant for {who}, is taken or not allowed: "
            f"stop what uses it, or set another one, such as {remedy}"
        )


def _wait_for_own(what: str, url: str) -> None:
    click.echo(f"The {what} at {servers.hosts_of(url)} is your own: it is not started here, only waited for.")
    servers.wait_until_answers(url, FOREIGN_SERVER_TIMEOUT_S)


def _describe(url: str, server: str | None) -> str:
    """Say where a server is; ``server`` is None for the user's own."""
    return f"{servers.hosts_of(url)} ({'your own' if server is None else f'{server}, started here'})"


def _show(**places: str) -> None:
    for name, place in places.items():
        click.echo(f"{name.capitalize():<9} {place}")
    click.echo(
        "First event: in another terminal set the key as above, `webhooks add` a webhook, then `webhooks send FILE` an "
        "event; `--help` says more. Ctrl-C stops everything.\n"
    )
