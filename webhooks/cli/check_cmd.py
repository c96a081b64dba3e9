"""``webhooks check``: the state of broker, database, workers and queues, within seconds."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import click
from redis.exceptions import NoPermissionError

from webhooks.cli.options import JSON_OPTION
from webhooks.cli.output import Cell, Table, place_of, print_json
from webhooks.cli.secret_cmd import count_unreadable
from webhooks.cli.workers import Digests, find_workers
from webhooks.config import Settings, get_settings
from webhooks.metrics.broker import QueueLength, count_messages, find_eviction_policy
from webhooks.metrics.questions import NoAnswer, Query, connect, inspect_workers
from webhooks.rules.encryption import Vault
from webhooks.store.gates import State
from webhooks.store.leases import WorkerStore
from webhooks.store.mongo import open_database, server_version
from webhooks.store.overview import Overview, OverviewStore
from webhooks.store.webhooks import WebhookStore
from webhooks.worker.digest import Digest

#: Seconds for workers to answer; the whole time passes, because their number is not known.
_WORKERS_TIMEOUT_S = 2
#: Maximum number of webhooks whose secrets are checked.
_SEALED_LIMIT = 1_000

_OK, _WARNING = Cell("ok", "green"), Cell("warning", "yellow")
_DOWN, _UNKNOWN = Cell("DOWN", "bold red"), Cell("unknown", "dim")
#: A worker that consumes none of these belongs to another application.
_OUR_QUEUES = frozenset({"webhooks.deliver", "webhooks.send"})


@dataclass
class Part:
    """The state of the broker or the database."""

    place: str
    is_ok: bool = False
    #: Product and version, or the error.
    text: str = ""
    #: None for the broker, and for a database that does not answer.
    overview: Overview | None = None
    #: Settings of the workers, which the database has.
    digests: Digests = field(default_factory=dict)
    #: Problems that an operator should solve.
    warnings: list[str] = field(default_factory=list)
    #: What could not be checked, and why.
    unknown: list[str] = field(default_factory=list)


@dataclass
class Worker:
    """A worker that answered."""

    name: str
    active: int | None
    concurrency: int | None
    queues: list[str]
    #: Differences between its settings and this terminal's; None if MongoDB does not have them.
    differences: list[str] | None = None


@dataclass
class Report:
    """The result of all checks."""

    broker: Part
    database: Part
    workers: list[Worker] = field(default_factory=list)
    #: Empty if the broker does not answer.
    queues: list[QueueLength] = field(default_factory=list)
    #: Messages that workers have taken; None if the broker does not tell.
    unacked: int | None = None

    @property
    def parked(self) -> int | None:
        """Messages that are not due yet, such as retries; None if the broker does not tell."""
        delayed = [length.delayed for length in self.queues if length.delayed is not None]
        return sum(delayed) if delayed else None

    @property
    def is_ok(self) -> bool:
        """Whether events are delivered now."""
        return self.broker.is_ok and self.database.is_ok and bool(self.workers)


@click.command(short_help="Check broker, database, workers and queues.")
@JSON_OPTION
@click.pass_context
def check(ctx: click.Context, as_json: bool) -> None:
    """Check broker, database, workers and queues.

    Exits with 0 if the broker, the database and at least one worker answer, otherwise with 1.
    """
    settings = get_settings()
    database = Query(lambda: _ask_database(settings))
    report = Report(_check_part(Query(lambda: _ask_broker(settings)), settings.broker_url), Part(""))
    if report.broker.is_ok:
        counts = Query(lambda: _count_messages(settings))
        workers = Query(lambda: _ask_workers(settings))
        try:
            report.workers = workers.result()
            report.queues, report.unacked = counts.result()
        except NoAnswer as error:
            report.broker.is_ok, report.broker.text = False, f"stopped answering: {error}"
    report.database = _check_part(database, settings.mongodb_url)
    _compare(report, Digest.of(settings))
    if as_json:
        print_json(json.dumps(_as_dict(report), ensure_ascii=False))
    else:
        _print(report)
    ctx.exit(0 if report.is_ok else 1)


def _check_part(query: Query[Part], url: str) -> Part:
    try:
        return query.result()
    except NoAnswer as error:
        return Part(place_of(url), text=str(error))


def _compare(report: Report, here: Digest) -> None:
    """Note in what the workers' settings differ from these."""
    for worker in report.workers:
        digest = report.database.digests.get(worker.name)
        worker.differences = None if digest is None else digest.compare(here)


def _ask_broker(settings: Settings) -> Part:
    part = Part(place_of(settings.broker_url))
    with connect(settings.broker_url) as connection:
        if connection.transport.driver_type == "redis":
            _ask_redis(cast("Any", connection.default_channel).client, part)
        else:
            facts = getattr(connection.connection, "server_properties", {})
            part.text = f"{facts.get('product', connection.transport.driver_type)} {facts.get('version', '')}".strip()
    part.is_ok = True
    return part


def _count_messages(settings: Settings) -> tuple[list[QueueLength], int | None]:
    with connect(settings.broker_url) as connection:
        return count_messages(connection)


def _ask_redis(client: Any, part: Part) -> None:
    try:
        facts = client.info()
    except NoPermissionError:
        part.text = _read_hello(client)
        part.unknown.append(
            "maxmemory-policy and appendonly: the user of WEBHOOKS_BROKER_URL may not read them (INFO); make sure "
            "that they are noeviction and yes"
        )
        return
    name = "Valkey" if "valkey_version" in facts else "Redis"
    part.text = f"{name} {facts.get('valkey_version') or facts.get('redis_version')}"
    part.warnings = _find_dangers(facts)


def _read_hello(client: Any) -> str:
    """Return product and version, which Redis tells every user."""
    reply = client.execute_command("HELLO")
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    facts = {_to_text(key): _to_text(value) for key, value in pairs}
    return f"{facts.get('server', 'redis').capitalize()} {facts.get('version', '')}".strip()


def _to_text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _find_dangers(facts: dict[str, Any]) -> list[str]:
    """Return warnings about settings with which a Redis loses messages, from the reply to INFO."""
    dangers = []
    if (policy := find_eviction_policy(facts)) != "noeviction":
        dangers.append(f"maxmemory-policy is {policy}: full memory drops queued messages; set it to noeviction")
    if not facts.get("aof_enabled"):
        dangers.append("appendonly is off: a restart loses the newest messages; set appendonly to yes")
    return dangers


def _ask_database(settings: Settings) -> Part:
    database = open_database(settings.mongodb_url, settings.mongodb_timeout_s)
    with database.client:
        part = Part(place_of(settings.mongodb_url), is_ok=True, text=f"MongoDB {server_version(database)}")
        part.digests = find_workers(WorkerStore(database))
        part.overview = OverviewStore(database).read()
        sealed = WebhookStore(database).list_sealed(_SEALED_LIMIT)
        unreadable = count_unreadable(sealed, Vault(settings.encryption_key))
    if unreadable:
        many = _count(unreadable, "webhook has", "webhooks have")
        part.warnings.append(
            f"{many} secrets that WEBHOOKS_ENCRYPTION_KEY here does not open; workers with the same key cannot either"
        )
    if dead := part.overview.dead_letters:
        many = _count(dead, "dead letter", "dead letters")
        part.warnings.append(f"{many}: messages that no worker could handle; webhooks dead list")
    return part


def _ask_workers(settings: Settings) -> list[Worker]:
    """Return our workers; other applications may use the same broker."""
    asked = {
        what: Query(lambda what=what: inspect_workers(settings.broker_url, what, _WORKERS_TIMEOUT_S))
        for what in ("stats", "active", "active_queues")
    }
    stats, active, queues = (query.result() for query in asked.values())
    workers = []
    for name in sorted(queues):
        consumed = sorted(queue["name"] for queue in queues[name])
        if _OUR_QUEUES.isdisjoint(consumed):
            continue
        tasks, pool = active.get(name), stats.get(name, {}).get("pool", {})
        concurrency = pool.get("max-concurrency")
        workers.append(Worker(name, None if tasks is None else len(tasks), concurrency, consumed))
    return workers


def _print(report: Report) -> None:
    rows: list[list[str | Cell]] = []
    for name, part in (("broker", report.broker), ("database", report.database)):
        state, text = (_OK, f"{part.text} at {part.place}") if part.is_ok else (_DOWN, f"{part.place}: {part.text}")
        rows.append([name, state, text])
        rows.extend([name, _UNKNOWN, text] for text in part.unknown)
        rows.extend([name, _WARNING, warning] for warning in part.warnings)
    if report.database.overview is not None:
        rows.extend(_describe(report.database.overview))
    for worker in report.workers:
        active = "?" if worker.active is None else worker.active
        missing = sorted(_OUR_QUEUES - set(worker.queues))
        text = f"{worker.name}: {active} active of {worker.concurrency or '?'}"
        rows.append(["worker", _OK, text + (f"; does not take {', '.join(missing)}" if missing else "")])
        if worker.differences is None:
            rows.append(["worker", _UNKNOWN, f"{worker.name}: MongoDB does not have its settings: is it older?"])
        rows.extend(["worker", _WARNING, f"{worker.name}: {text}"] for text in worker.differences or ())
    if not report.broker.is_ok:
        rows.append(["worker", _UNKNOWN, "cannot be checked without the broker"])
    elif not report.workers:
        rows.append(
            ["worker", _DOWN, f"none answered within {_WORKERS_TIMEOUT_S} s; start one: celery -A webhooks worker"]
        )
    rows.extend(["queue", _OK, _describe_queue(length)] for length in report.queues)
    if report.unacked is not None:
        rows.append(["queue", _OK, f"{report.unacked} taken by workers"])
    if report.parked is not None:
        rows.append(["queue", _OK, f"{report.parked} not due yet, such as retries"])
    Table().print(rows)


def _describe(overview: Overview) -> list[list[str | Cell]]:
    text = f"{_count(overview.pending, 'delivery', 'deliveries')} pending"
    if overview.pending:
        text += f", {overview.held} held; the oldest for {overview.oldest_s:.0f} s"
    if overview.overdue_s:
        text += f"; the longest due for {overview.overdue_s:.0f} s"
    rows: list[list[str | Cell]] = [["ledger", _OK, text]]
    shut = [(state, by, count) for (state, by), count in overview.endpoints.items() if state != State.OPEN and count]
    rows.extend(
        ["webhooks", _WARNING, f"{_count(count, 'webhook is', 'webhooks are')} {state}, by {by}"]
        for state, by, count in shut
    )
    return rows


def _describe_queue(length: QueueLength) -> str:
    age = "" if length.oldest_s is None else f", the oldest for {length.oldest_s:.0f} s"
    return f"{length.queue}: {length.waiting} waiting{age}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _as_dict(report: Report) -> dict[str, Any]:
    result: dict[str, Any] = {"ok": report.is_ok}
    for name, part in (("broker", report.broker), ("database", report.database)):
        result[name] = {"ok": part.is_ok, "at": part.place, "text": part.text}
        result[name] |= {"warnings": part.warnings, "unknown": part.unknown}
    overview = report.database.overview
    result |= {"workers": [asdict(worker) for worker in report.workers], "owed": overview and overview.pending}
    if overview is not None:
        result |= {"held": overview.held, "oldest_s": overview.oldest_s, "overdue_s": overview.overdue_s}
        result |= {"outbox": overview.outbox, "dead_letters": overview.dead_letters}
        result["endpoints"] = [
            {"state": state, "by": by or None, "webhooks": count} for (state, by), count in overview.endpoints.items()
        ]
    result["queued"] = {length.queue: length.waiting for length in report.queues}
    return {**result, "unacked": report.unacked, "parked": report.parked}
