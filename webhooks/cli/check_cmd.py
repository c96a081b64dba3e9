"""``webhooks check``: do broker and database answer, which workers run, how much is queued.

Owns the questions and the deadlines: whatever is away, paused or slow, the command ends within seconds.
"""

import json
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import click
from kombu.connection import Connection
from kombu.exceptions import OperationalError

from webhooks.app import app
from webhooks.cli.common import Cell, Table, json_option, place_of, print_json
from webhooks.cli.secret_cmd import count_unreadable
from webhooks.config import Settings, get_settings
from webhooks.deadletters import DeadLetterStore
from webhooks.errors import InvalidSettings, StoreUnavailable, WebhooksError
from webhooks.ledger import Ledger
from webhooks.mongo import open_database, server_version
from webhooks.transport import PARKED_KEY
from webhooks.vault import Vault
from webhooks.webhookstore import WebhookStore

_T = TypeVar("_T")

#: Seconds for one answer of the broker.
_BROKER_TIMEOUT_S = 2
#: Seconds in which workers have to answer. All of it passes, as nobody knows how many there are.
_WORKERS_TIMEOUT_S = 2
#: Seconds for a part as a whole. Look-ups of host names, for one, have no deadline of their own.
_PART_TIMEOUT_S = 6
#: Webhooks whose secrets are tried: the first ones tell whether the key is the right one.
_SEALED_LIMIT = 1_000
#: Counting dead letters ends here.
_COUNT_LIMIT = 10_000

#: Where messages wait, and what is too little to call a worker one of ours: one that consumes none of these.
QUEUES = ("webhooks.deliver", "webhooks.send", "celery")
_OUR_QUEUES = frozenset({"webhooks.deliver", "webhooks.send"})


class _NoAnswer(WebhooksError):
    """A part cannot be asked; the text says why."""


@dataclass
class Part:
    """What was found out about the broker or the database."""

    place: str
    is_ok: bool = False
    #: Product and version, or why there is none.
    text: str = ""
    #: Deliveries that the ledger says are owed; None where that was not asked.
    owed: int | None = None
    #: What works now and yet needs somebody to see to it.
    warnings: list[str] = field(default_factory=list)


@dataclass
class Worker:
    """A worker that answered."""

    name: str
    active: int | None
    concurrency: int | None
    queues: list[str]


@dataclass
class Report:
    """All that was found out."""

    broker: Part
    database: Part
    workers: list[Worker] = field(default_factory=list)
    #: Messages per queue; empty when the broker was away.
    queued: dict[str, int] = field(default_factory=dict)
    #: Messages that workers have in hand; None where the broker does not say.
    unacked: int | None = None
    #: Messages that wait for their time, such as a retry's; None where the broker does not say.
    parked: int | None = None

    @property
    def is_ok(self) -> bool:
        """Whether events would be delivered now."""
        return self.broker.is_ok and self.database.is_ok and bool(self.workers)


@click.command(short_help="Check broker, database, workers and queues.")
@json_option
@click.pass_context
def check(ctx: click.Context, as_json: bool) -> None:
    """Check that events would be delivered: broker, database, workers, queues.

    Exits with 0 if broker and database answer and at least one worker does, with 1 otherwise.
    """
    settings = get_settings()
    database = _Task(lambda: _ask_database(settings))
    report = Report(_check_part(_Task(lambda: _ask_broker(settings)), settings.broker_url), Part(""))
    if report.broker.is_ok:
        counts = _Task(lambda: _count_messages(settings.broker_url))
        workers = _Task(lambda: _ask_workers(settings.broker_url))
        try:
            report.workers = workers.result()
            report.queued, report.unacked, report.parked = counts.result()
        except _NoAnswer as error:
            report.broker.is_ok, report.broker.text = False, f"stopped answering: {error}"
    report.database = _check_part(database, settings.mongodb_url)
    if as_json:
        print_json(json.dumps(_as_dict(report), ensure_ascii=False))
    else:
        _print(report)
    ctx.exit(0 if report.is_ok else 1)


def _check_part(task: "_Task[Part]", url: str) -> Part:
    try:
        return task.result()
    except _NoAnswer as error:
        return Part(place_of(url), text=str(error))


# ── Questions ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _Task(Generic[_T]):
    """A question that is being asked, in a thread that nobody has to wait for."""

    def __init__(self, question: Callable[[], _T]) -> None:
        self._answers: queue.SimpleQueue[tuple[_T | None, _NoAnswer | None]] = queue.SimpleQueue()
        threading.Thread(target=self._ask, args=(question,), daemon=True).start()

    def _ask(self, question: Callable[[], _T]) -> None:
        try:
            self._answers.put((question(), None))
        except _NoAnswer as error:
            self._answers.put((None, error))
        except Exception as error:  # noqa: BLE001 - whatever it is, a check says so; without its text, see _no_answer
            self._answers.put((None, _no_answer(error)))

    def result(self) -> _T:
        """Wait for the answer.

        Raises:
            _NoAnswer: there is none, or not in time.
        """
        try:
            answer, error = self._answers.get(timeout=_PART_TIMEOUT_S)
        except queue.Empty:
            raise _NoAnswer(f"no answer within {_PART_TIMEOUT_S} s") from None
        if error:
            raise error
        return cast("_T", answer)


def _no_answer(error: Exception) -> _NoAnswer:
    """Put a foreign error into words.

    Only the texts of errors that are known are repeated: others, such as those about a URL, may hold a password.
    """
    known = (OperationalError, OSError, StoreUnavailable, InvalidSettings)
    return _NoAnswer(str(error) if isinstance(error, known) and str(error) else type(error).__name__)


def _connect(url: str) -> Connection:
    """Make a connection to the broker that gives up soon.

    Raises:
        _NoAnswer: the URL cannot be used.
    """
    deadlines = {"socket_connect_timeout": _BROKER_TIMEOUT_S, "socket_timeout": _BROKER_TIMEOUT_S}
    try:
        # The app's own kind of connection: it knows what waits in lanes.
        connection = app.connection_for_read(
            url,
            connect_timeout=_BROKER_TIMEOUT_S,
            transport_options=deadlines if url.startswith("redis") else {},
        )
        connection.transport_cls  # noqa: B018 - finds out whether the scheme is known
    except (ValueError, KeyError, ImportError):
        raise _NoAnswer("WEBHOOKS_BROKER_URL is not a broker URL that can be used here") from None
    return connection


def _ask_broker(settings: Settings) -> Part:
    part = Part(place_of(settings.broker_url))
    with _connect(settings.broker_url) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=_BROKER_TIMEOUT_S)
        if connection.transport.driver_type == "redis":
            client = cast("Any", connection.default_channel).client
            facts = client.info()
            name = "Valkey" if "valkey_version" in facts else "Redis"
            part.text = f"{name} {facts.get('valkey_version') or facts.get('redis_version')}"
            part.warnings = _find_dangers(facts)
        else:
            facts = getattr(connection.connection, "server_properties", {})
            part.text = f"{facts.get('product', connection.transport.driver_type)} {facts.get('version', '')}".strip()
    part.is_ok = True
    return part


def _find_dangers(facts: dict[str, Any]) -> list[str]:
    """Find settings of a Redis that lose messages, in what its INFO says."""
    dangers = []
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        dangers.append(f"maxmemory-policy is {policy}: full memory drops queued messages; set it to noeviction")
    if not facts.get("aof_enabled"):
        dangers.append("appendonly is off: a restart loses the newest messages; set appendonly to yes")
    return dangers


def _ask_database(settings: Settings) -> Part:
    database = open_database(settings.mongodb_url, settings.mongodb_timeout_s)
    with database.client:
        part = Part(place_of(settings.mongodb_url), is_ok=True, text=f"MongoDB {server_version(database)}")
        dead = DeadLetterStore(database).count(_COUNT_LIMIT)
        part.owed = Ledger(database, settings.claim_s, settings.mongodb_timeout_s).count()
        sealed = WebhookStore(database).list_sealed(_SEALED_LIMIT)
        unreadable = count_unreadable(sealed, Vault(settings.encryption_key))
    if unreadable:
        many = _count(unreadable, "webhook has", "webhooks have")
        part.warnings.append(f"{many} secrets that WEBHOOKS_ENCRYPTION_KEY does not open: workers with it send nothing")
    if dead:
        many = _count(dead, "dead letter", "dead letters")
        part.warnings.append(f"{many}: messages that no worker could handle; webhooks dead list")
    return part


def _count_messages(url: str) -> tuple[dict[str, int], int | None, int | None]:
    """Count what waits per queue, what workers have in hand, and what is parked until its time has come."""
    counts = {}
    with _connect(url) as connection:
        for name in QUEUES:
            try:
                with connection.channel() as channel:
                    counts[name] = cast("Any", channel).queue_declare(name, passive=True).message_count
            except connection.channel_errors:
                counts[name] = 0  # nobody declared it yet; in Redis an empty queue does not exist
        unacked = parked = None
        if connection.transport.driver_type == "redis":
            channel = cast("Any", connection.default_channel)
            unacked = channel.client.hlen(channel.unacked_key)
            parked = sum(channel.client.zcard(PARKED_KEY.format(name)) for name in QUEUES)
    return counts, unacked, parked


def _ask_workers(url: str) -> list[Worker]:
    """Ask all workers on the broker, and return those of this product; others may share it."""
    asked = {what: _Task(lambda what=what: _inspect(url, what)) for what in ("stats", "active", "active_queues")}
    stats, active, queues = (task.result() for task in asked.values())
    workers = []
    for name in sorted(queues):
        consumed = sorted(queue["name"] for queue in queues[name])
        if _OUR_QUEUES.isdisjoint(consumed):
            continue
        tasks, pool = active.get(name), stats.get(name, {}).get("pool", {})
        concurrency = pool.get("max-concurrency")
        workers.append(Worker(name, None if tasks is None else len(tasks), concurrency, consumed))
    return workers


def _inspect(url: str, what: str) -> dict[str, Any]:
    with _connect(url) as connection:
        inspect = app.control.inspect(timeout=_WORKERS_TIMEOUT_S, connection=connection)
        return getattr(inspect, what)() or {}


# ── Answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _print(report: Report) -> None:
    rows: list[list[str | Cell]] = []
    remedies = {
        "broker": "start it, or set WEBHOOKS_BROKER_URL to where it is",
        "database": "start it, or set WEBHOOKS_MONGODB_URL to where it is",
    }
    for name, part in (("broker", report.broker), ("database", report.database)):
        if part.is_ok:
            rows.append([name, _OK, f"{part.text} at {part.place}"])
        else:
            rows.append([name, _DOWN, f"{part.place}: {part.text}; {remedies[name]}"])
        rows.extend([name, _WARNING, warning] for warning in part.warnings)
    if report.database.owed is not None:
        rows.append(["ledger", _OK, f"{_count(report.database.owed, 'delivery', 'deliveries')} owed"])
    for worker in report.workers:
        active = "?" if worker.active is None else worker.active
        missing = sorted(_OUR_QUEUES - set(worker.queues))
        text = f"{worker.name}: {active} active of {worker.concurrency or '?'}"
        rows.append(["worker", _OK, text + (f"; does not take {', '.join(missing)}" if missing else "")])
    if not report.broker.is_ok:
        rows.append(["worker", _UNKNOWN, "cannot be asked without the broker"])
    elif not report.workers:
        rows.append(
            ["worker", _DOWN, f"none answered within {_WORKERS_TIMEOUT_S} s; start one: celery -A webhooks worker"]
        )
    rows.extend(["queue", _OK, f"{name}: {count} waiting"] for name, count in report.queued.items())
    if report.unacked is not None:
        rows.append(["queue", _OK, f"{report.unacked} in the hands of workers"])
    if report.parked is not None:
        rows.append(["queue", _OK, f"{report.parked} waiting for their time, such as that of a retry"])
    Table().print(rows)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


_OK = Cell("ok", "green")
_WARNING = Cell("warning", "yellow")
_DOWN = Cell("DOWN", "bold red")
_UNKNOWN = Cell("unknown", "dim")


def _as_dict(report: Report) -> dict[str, Any]:
    parts = {
        name: {"ok": part.is_ok, "at": part.place, "text": part.text, "warnings": part.warnings}
        for name, part in (("broker", report.broker), ("database", report.database))
    }
    workers = [
        {"name": worker.name, "active": worker.active, "concurrency": worker.concurrency, "queues": worker.queues}
        for worker in report.workers
    ]
    counts = {"queued": report.queued, "unacked": report.unacked, "parked": report.parked}
    return {"ok": report.is_ok, **parts, "workers": workers, "owed": report.database.owed, **counts}
