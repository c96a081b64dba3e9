"""``webhooks check``: do broker and database answer, which workers run, how much is queued.

Owns the questions and the deadlines: whatever is away, paused or slow, the command ends within seconds.
"""

import json
from dataclasses import dataclass, field
from typing import Any, cast

import click
from redis.exceptions import NoPermissionError

from webhooks.cli.common import Cell, Table, json_option, place_of, print_json
from webhooks.cli.questions import BROKER_TIMEOUT_S, NoAnswer, Query, connect, inspect_workers
from webhooks.cli.queues_cmd import QueueLength, count_messages
from webhooks.cli.secret_cmd import count_unreadable
from webhooks.cli.workers import ask_workers
from webhooks.config import Settings, get_settings
from webhooks.rules.encryption import Vault
from webhooks.store.deadletters import DeadLetterStore
from webhooks.store.deliveries import DeliveryStore
from webhooks.store.mongo import open_database, server_version
from webhooks.store.webhooks import WebhookStore
from webhooks.worker.digest import Digest

#: Seconds in which workers have to answer. All of it passes, as nobody knows how many there are.
_WORKERS_TIMEOUT_S = 2
#: Webhooks whose secrets are tried: the first ones tell whether the key is the right one.
_SEALED_LIMIT = 1_000
#: Counting dead letters ends here.
_COUNT_LIMIT = 10_000

#: What is too little to call a worker one of ours: one that consumes none of these.
_OUR_QUEUES = frozenset({"webhooks.deliver", "webhooks.send"})


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
    #: What could not be asked, and why.
    unknown: list[str] = field(default_factory=list)


@dataclass
class Worker:
    """A worker that answered."""

    name: str
    active: int | None
    concurrency: int | None
    queues: list[str]
    #: In what its settings differ from those of this terminal; None where it did not tell them.
    differences: list[str] | None


@dataclass
class Report:
    """All that was found out."""

    broker: Part
    database: Part
    workers: list[Worker] = field(default_factory=list)
    #: Empty when the broker was away.
    queues: list[QueueLength] = field(default_factory=list)
    #: Messages that workers have in hand; None where the broker does not say.
    unacked: int | None = None

    @property
    def parked(self) -> int | None:
        """Messages that wait for their time, such as a retry's; None where the broker does not say."""
        delayed = [length.delayed for length in self.queues if length.delayed is not None]
        return sum(delayed) if delayed else None

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
    database = Query(lambda: _ask_database(settings))
    report = Report(_check_part(Query(lambda: _ask_broker(settings)), settings.broker_url), Part(""))
    if report.broker.is_ok:
        counts = Query(lambda: count_messages(settings.broker_url))
        workers = Query(lambda: _ask_workers(settings))
        try:
            report.workers = workers.result()
            report.queues, report.unacked = counts.result()
        except NoAnswer as error:
            report.broker.is_ok, report.broker.text = False, f"stopped answering: {error}"
    report.database = _check_part(database, settings.mongodb_url)
    if as_json:
        print_json(json.dumps(_as_dict(report), ensure_ascii=False))
    else:
        _print(report)
    ctx.exit(0 if report.is_ok else 1)


def _check_part(task: Query[Part], url: str) -> Part:
    try:
        return task.result()
    except NoAnswer as error:
        return Part(place_of(url), text=str(error))


# ── Questions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _ask_broker(settings: Settings) -> Part:
    part = Part(place_of(settings.broker_url))
    with connect(settings.broker_url) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_TIMEOUT_S)
        if connection.transport.driver_type == "redis":
            _ask_redis(cast("Any", connection.default_channel).client, part)
        else:
            facts = getattr(connection.connection, "server_properties", {})
            part.text = f"{facts.get('product', connection.transport.driver_type)} {facts.get('version', '')}".strip()
    part.is_ok = True
    return part


def _ask_redis(client: Any, part: Part) -> None:
    try:
        facts = client.info()
    except NoPermissionError:
        part.text = _read_hello(client)
        part.unknown.append(
            "maxmemory-policy and appendonly: the user of WEBHOOKS_BROKER_URL may not ask (INFO); see to it that they "
            "are noeviction and yes"
        )
        return
    name = "Valkey" if "valkey_version" in facts else "Redis"
    part.text = f"{name} {facts.get('valkey_version') or facts.get('redis_version')}"
    part.warnings = _find_dangers(facts)


def _read_hello(client: Any) -> str:
    """Return product and version as Redis tells them everybody who connects."""
    reply = client.execute_command("HELLO")
    told = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    told = {_to_text(key): _to_text(value) for key, value in told.items()}
    return f"{told.get('server', 'redis').capitalize()} {told.get('version', '')}".strip()


def _to_text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


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
        part.owed = DeliveryStore(database, settings.claim_s, settings.mongodb_timeout_s).count()
        sealed = WebhookStore(database).list_sealed(_SEALED_LIMIT)
        unreadable = count_unreadable(sealed, Vault(settings.encryption_key))
    if unreadable:
        many = _count(unreadable, "webhook has", "webhooks have")
        part.warnings.append(
            f"{many} secrets that WEBHOOKS_ENCRYPTION_KEY here does not open; nor do workers with the same"
        )
    if dead:
        many = _count(dead, "dead letter", "dead letters")
        part.warnings.append(f"{many}: messages that no worker could handle; webhooks dead list")
    return part


def _ask_workers(settings: Settings) -> list[Worker]:
    """Ask all workers on the broker, and return those of this product; others may share it."""
    asked = {
        what: Query(lambda what=what: inspect_workers(settings.broker_url, what, _WORKERS_TIMEOUT_S))
        for what in ("stats", "active", "active_queues")
    }
    told = ask_workers(_WORKERS_TIMEOUT_S)
    stats, active, queues = (question.result() for question in asked.values())
    digests, here = told.result(), Digest.of(settings)
    workers = []
    for name in sorted(queues):
        consumed = sorted(queue["name"] for queue in queues[name])
        if _OUR_QUEUES.isdisjoint(consumed):
            continue
        tasks, pool = active.get(name), stats.get(name, {}).get("pool", {})
        concurrency = pool.get("max-concurrency")
        differences = digests[name].compare(here) if name in digests else None
        workers.append(Worker(name, None if tasks is None else len(tasks), concurrency, consumed, differences))
    return workers


# ── Answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _print(report: Report) -> None:
    rows: list[list[str | Cell]] = []
    for name, part in (("broker", report.broker), ("database", report.database)):
        if part.is_ok:
            rows.append([name, _OK, f"{part.text} at {part.place}"])
        else:
            rows.append([name, _DOWN, f"{part.place}: {part.text}"])
        rows.extend([name, _UNKNOWN, text] for text in part.unknown)
        rows.extend([name, _WARNING, warning] for warning in part.warnings)
    if report.database.owed is not None:
        rows.append(["ledger", _OK, f"{_count(report.database.owed, 'delivery', 'deliveries')} owed"])
    for worker in report.workers:
        active = "?" if worker.active is None else worker.active
        missing = sorted(_OUR_QUEUES - set(worker.queues))
        text = f"{worker.name}: {active} active of {worker.concurrency or '?'}"
        rows.append(["worker", _OK, text + (f"; does not take {', '.join(missing)}" if missing else "")])
        if worker.differences is None:
            rows.append(["worker", _UNKNOWN, f"{worker.name} does not tell its settings: it is of an older version"])
        rows.extend(["worker", _WARNING, f"{worker.name}: {text}"] for text in worker.differences or ())
    if not report.broker.is_ok:
        rows.append(["worker", _UNKNOWN, "cannot be asked without the broker"])
    elif not report.workers:
        rows.append(
            ["worker", _DOWN, f"none answered within {_WORKERS_TIMEOUT_S} s; start one: celery -A webhooks worker"]
        )
    rows.extend(["queue", _OK, f"{length.queue}: {length.waiting} waiting"] for length in report.queues)
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
        name: {
            "ok": part.is_ok,
            "at": part.place,
            "text": part.text,
            "warnings": part.warnings,
            "unknown": part.unknown,
        }
        for name, part in (("broker", report.broker), ("database", report.database))
    }
    workers = [
        {
            "name": worker.name,
            "active": worker.active,
            "concurrency": worker.concurrency,
            "queues": worker.queues,
            "differences": worker.differences,
        }
        for worker in report.workers
    ]
    queued = {length.queue: length.waiting for length in report.queues}
    counts = {"queued": queued, "unacked": report.unacked, "parked": report.parked}
    return {"ok": report.is_ok, **parts, "workers": workers, "owed": report.database.owed, **counts}
