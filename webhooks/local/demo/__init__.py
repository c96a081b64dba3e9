"""``webhooks demo``: deliver two events with real servers, a real worker and a receiver, and show each step."""

import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import click

from webhooks.config import Settings
from webhooks.errors import CannotStart, StoreUnavailable
from webhooks.local import servers
from webhooks.local.processes import Supervisor, kill_group, spawn
from webhooks.local.receiver import Received, run_receiver
from webhooks.local.up import child_env, flower_program, start_servers, worker_program
from webhooks.rules.encryption import new_key
from webhooks.store.logs import LogQuery, LogStore
from webhooks.store.mongo import open_database

_EVENTS = Path(__file__).parent / "events"
_COMPANY = "625bcbdcc9a8e3a86dbf041c"  # the company of the sample events
#: Path at which the receiver answers each delivery some times with 503, then with 200.
_FLAKY_PATH = "/notes"
_REFUSALS = 2
#: Seconds between attempts; short, so that the demo is quick.
_RETRY_DELAY_S = 3
#: Attempts of the demo: one for the task; for the note, those that fail and one that succeeds.
_ATTEMPTS = 1 + _REFUSALS + 1
#: Seconds for all attempts.
_ATTEMPTS_WITHIN_S = 60

_screen = threading.Lock()


def run_demo(settings: Settings, *, once: bool) -> None:
    """Run the demo, then keep everything running until Ctrl-C; leave no process and no file behind.

    Args:
        settings: the user's; the demo overrides the servers' URLs, allowed networks, retries and key.
        once: end after the demo.

    Raises:
        CannotStart: a program does not start, or the attempts do not end in time.
        ServerMissing: a server is not installed.
    """
    with (
        tempfile.TemporaryDirectory(prefix="webhooks-demo-") as folder,
        run_receiver(_answer, _show) as receiver_port,
    ):
        try:
            with Supervisor() as supervisor:
                _run(Path(folder), settings, supervisor, receiver_port, once=once)
        except KeyboardInterrupt:
            click.echo()
        click.echo("All stopped; no process and no file is left.")


def _answer(received: Received) -> tuple[int, bytes]:
    is_refused = received.path == _FLAKY_PATH and received.number <= _REFUSALS
    return (503, b"busy, come back later") if is_refused else (200, b"thank you")


def _show(received: Received, status: int) -> None:
    line = f"POST {received.path}  {len(received.body)} bytes  webhook-id {received.delivery_id}  → {status}"
    _say(f"receiver │ {line}", fg="cyan")


def _run(data_dir: Path, settings: Settings, supervisor: Supervisor, receiver_port: int, *, once: bool) -> None:
    redis_port, mongo_port = servers.free_port(), servers.free_port()
    env = child_env(settings) | {
        "WEBHOOKS_BROKER_URL": servers.valkey_url(redis_port),
        "WEBHOOKS_MONGODB_URL": servers.mongodb_url(mongo_port),
        "WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8",
        "WEBHOOKS_RETRY_DELAY_S": str(_RETRY_DELAY_S),
        "WEBHOOKS_MAX_RETRIES": "3",
        "WEBHOOKS_ENCRYPTION_KEY": new_key(),
    }
    _say("Starting real servers, which listen only on loopback.", bold=True)
    _say(f"Valkey     {servers.LOOPBACK}:{redis_port}\nMongoDB    {servers.LOOPBACK}:{mongo_port}")
    start_servers(supervisor, data_dir, redis_port, mongo_port)
    log_path = data_dir / "worker.log"
    worker = worker_program(env, data_dir, grace_s=settings.total_timeout_s)
    # Task events from the start: Flower enables them only every few seconds, and would miss the first attempts.
    argv = [*worker.argv, "--task-events"]
    supervisor.start(replace(worker, argv=argv, log_path=log_path, ready=lambda: _is_worker_ready(log_path)))
    _say("worker     celery -A webhooks worker")
    flower_url = _start_flower(supervisor, env, data_dir)
    receiver = f"http://{servers.LOOPBACK}:{receiver_port}"
    _say(f"receiver   {receiver}")
    _say(f"\nThe demo retries a failed attempt after {_RETRY_DELAY_S} s; the default is 30 s.\n")
    task = ("--trigger", "create-edit-delete-task", "--url", f"{receiver}/tasks", "--code", "tasks")
    note = ("--trigger", "create-edit-delete-note", "--url", f"{receiver}{_FLAKY_PATH}", "--code", "notes")
    _command(env, "add", "--company", _COMPANY, *task)
    _command(env, "add", "--company", _COMPANY, *note)
    with _follow_logs(env):
        _say("One event that the receiver accepts at once, and one that it refuses twice:", bold=True)
        _command(env, "send", "task-create.json")
        _command(env, "send", "note-edit.json")
        _wait_for_logs(env["WEBHOOKS_MONGODB_URL"], settings.mongodb_timeout_s)
        time.sleep(1)  # for the last line to appear
    _say("\nThe logs in MongoDB, one COTWebhookLog per attempt:", bold=True)
    _command(env, "logs")
    _command(env, "show", "notes")
    if flower_url:
        _say(f"Flower shows what happened: {flower_url}/webhooks", bold=True)
    if not once:
        _say("Ctrl-C stops everything.")
        supervisor.wait()


def _start_flower(supervisor: Supervisor, env: Mapping[str, str], data_dir: Path) -> str | None:
    """Start Flower and return its URL; None if it is not installed."""
    if find_spec("flower") is None:
        _say("Flower     not installed; it comes with the extra `flower`: pip install '.[flower]'")
        return None
    port = servers.free_port()
    program = flower_program(env, data_dir, port)
    # Flower opens its port after it subscribed to task events, so it misses none.
    supervisor.start(replace(program, log_path=data_dir / "flower.log", ready=lambda: not servers.is_free(port)))
    url = f"http://{servers.LOOPBACK}:{port}"
    _say(f"Flower     {url}")
    return url


def _is_worker_ready(log_path: Path) -> bool:
    return log_path.exists() and " ready." in log_path.read_text(errors="replace")


def _command(env: Mapping[str, str], *arguments: str) -> None:
    """Run a command and show its output; raises CannotStart if it fails."""
    _say(f"$ webhooks {shlex.join(arguments)}", bold=True)
    argv = [sys.executable, "-m", "webhooks", *arguments]
    done = subprocess.run(  # noqa: S603 - our own command
        argv, env=env, cwd=_EVENTS, capture_output=True, text=True, timeout=60, check=False
    )
    _say(done.stdout)
    if done.returncode:
        raise CannotStart(f"`webhooks {arguments[0]}` failed: {done.stderr.strip()}")


@contextmanager
def _follow_logs(env: Mapping[str, str]) -> Iterator[None]:
    """Run ``webhooks logs --follow`` in the background."""
    _say("$ webhooks logs --follow &", bold=True)
    process = spawn([sys.executable, "-u", "-m", "webhooks", "logs", "--follow"], env=env, stdout=None)
    try:
        yield
    finally:
        kill_group(process)
        process.wait()


def _wait_for_logs(mongodb_url: str, timeout_s: float) -> None:
    database = open_database(mongodb_url, timeout_s)
    store = LogStore(database)
    give_up_at = time.monotonic() + _ATTEMPTS_WITHIN_S
    try:
        while time.monotonic() < give_up_at:
            try:
                if len(store.read(LogQuery(), _ATTEMPTS)) == _ATTEMPTS:
                    return
            except StoreUnavailable as error:
                _say(f"waiting: {error}")
            time.sleep(0.2)
    finally:
        database.client.close()
    raise CannotStart(f"the attempts did not end within {_ATTEMPTS_WITHIN_S} s")


def _say(text: str, **style: object) -> None:
    with _screen:
        click.secho(text, **style)  # pyright: ignore[reportArgumentType] - click's own names
