"""The Celery app that `celery -A webhooks` finds, and what a worker process opens for itself.

Owns configuration and wiring. Importing it opens no connection; each worker process opens its own on first use.
"""

import importlib.util
import json
import logging
import math
import os
import resource
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import click
from celery import Celery
from celery.concurrency import get_implementation
from celery.signals import worker_init, worker_process_init, worker_shutting_down
from kombu import serialization
from kombu.utils.json import dumps

from webhooks.books import Books
from webhooks.config import Settings, get_settings
from webhooks.deadletters import DeadLetterStore
from webhooks.delivery import Attempter
from webhooks.errors import InvalidSettings, StoreUnavailable
from webhooks.gates import GateStore
from webhooks.kept import KeptDeliveries
from webhooks.ledger import Ledger
from webhooks.logstore import LogStore
from webhooks.mongo import open_database
from webhooks.operators import Operators
from webhooks.outbox import Outbox
from webhooks.retry import RetryPolicy
from webhooks.sender import Sender
from webhooks.transport import AMQP, BoundedConnection
from webhooks.vault import Vault
from webhooks.webhookstore import WebhookStore

logger = logging.getLogger(__name__)


class _SignalEvent(threading.Event):
    """An event that a signal handler sets.

    A second signal may come while the handler of the first one sets it, and holds its lock: that would wait for itself,
    and the worker never end.
    """

    _is_being_set = False

    def set(self) -> None:
        if not self._is_being_set:
            self._is_being_set = True
            super().set()


#: Set when this worker was told to stop: what waits for a server gives its message back instead.
stopping: threading.Event = _SignalEvent()
# Celery takes this lock while it handles the operating system's signal, so the same holds for it.
cast("Any", worker_shutting_down).lock = threading.RLock()


class Progress:
    """How far this process has come with its queue, which is in the order in which deliveries become due."""

    def __init__(self) -> None:
        #: Since when the delivery was due that was taken last; None before the first.
        self.taken_due_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Services:
    """What the tasks of one process work with."""

    webhooks: WebhookStore
    logs: LogStore
    dead_letters: DeadLetterStore
    ledger: Ledger
    kept: KeptDeliveries
    gates: GateStore
    outbox: Outbox
    books: Books
    attempter: Attempter
    progress: Progress
    #: None when no URL is set to tell operators at.
    operators: Operators | None = None


@cache
def get_services() -> Services:
    """Open this process's own connections, once; they connect when first used.

    Raises:
        InvalidSettings: a setting cannot be used.
    """
    settings = get_settings()
    database = open_database(settings.mongodb_url, settings.mongodb_timeout_s)
    logs, ledger = LogStore(database), Ledger(database, settings.claim_s, settings.mongodb_timeout_s)
    sender = Sender(
        allowed_networks=settings.allowed_networks,
        allowed_ports=settings.allowed_ports,
        proxy=settings.proxy_url,
        connect_timeout_s=settings.connect_timeout_s,
        total_timeout_s=settings.total_timeout_s,
        max_response_bytes=settings.max_response_bytes,
        ca_bundle=settings.ca_bundle,
        pool_size=settings.concurrency,
    )
    policy = RetryPolicy(settings.retry_delay_s, settings.max_retries, settings.max_retry_after_s)
    kept, gates, webhooks = KeptDeliveries(database, ledger), GateStore(database), WebhookStore(database)
    return Services(
        webhooks=webhooks,
        logs=logs,
        dead_letters=DeadLetterStore(database),
        ledger=ledger,
        kept=kept,
        gates=gates,
        outbox=Outbox(database),
        books=Books(ledger, kept, logs, gates, webhooks),
        attempter=Attempter(
            sender=sender,
            policy=policy,
            vault=Vault(settings.encryption_key),
            probe_interval_s=settings.probe_interval_s,
        ),
        progress=Progress(),
        operators=None if settings.operators_url is None else _open_operators(settings, settings.operators_url),
    )


def _open_operators(settings: Settings, url: str) -> Operators:
    return Operators(
        url,
        settings.operators_secret,
        connect_timeout_s=settings.connect_timeout_s,
        total_timeout_s=settings.total_timeout_s,
        ca_bundle=settings.ca_bundle,
    )


def find_config(name: str) -> Path:
    """Find one of our configuration files: inside the package in an installed copy, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.exists() else package.parent / name


def _load_celeryconfig() -> ModuleType:
    """Load our celeryconfig by its place, never by its name: a service that imports us has one of its own."""
    path = find_config("celeryconfig.py")
    spec = importlib.util.spec_from_file_location("webhooks.celeryconfig", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _LazyConfig(Mapping[str, Any]):
    """Our celeryconfig, read when Celery first needs an option.

    So a setting that cannot be used is an error of the command or call that needs it, which can say so in one line,
    and not of everybody who imports this package.
    """

    @cached_property
    def _options(self) -> dict[str, Any]:
        return vars(_load_celeryconfig())

    def __getitem__(self, key: str) -> Any:
        return self._options[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)


def _prepare_command(*_: object) -> None:
    """Do what comes first in each `celery -A webhooks …`: check the settings, and show Flower its own."""
    try:
        get_settings()
    except InvalidSettings as error:
        raise click.ClickException(str(error)) from None
    # Flower looks for it in the current folder alone, and without it listens to everybody.
    if not Path("flowerconfig.py").exists():
        os.environ.setdefault("FLOWER_CONF", str(find_config("flowerconfig.py")))


# Not the current app: a producer that imports us keeps its own.
app = Celery("webhooks", set_as_current=False, amqp=AMQP, include=["webhooks.sweeper", "webhooks.steward"])
app.config_from_object(_LazyConfig())
# Celery adds these to each of its commands, Flower's included. This one is only there for its callback, which comes
# before Celery reads its options.
cast("dict[str, set[click.Option]]", app.user_options)["preload"].add(
    click.Option(
        ["--check-settings"], is_flag=True, hidden=True, is_eager=True, expose_value=False, callback=_prepare_command
    )
)


@worker_init.connect
def _prepare_worker(sender: Any, **_: object) -> None:
    _check_pool(get_implementation(sender.pool_cls))
    _read_json_as_it_is()
    _keep_payloads_out_of_logs()
    _log_one_line_per_attempt()
    BoundedConnection.is_patient = True
    _allow_many_connections()
    threading.Thread(target=_make_indexes, name="make-indexes", daemon=True).start()


@worker_process_init.connect
def _prepare_pool_process(**_: object) -> None:
    # Prefork: a client that the parent opened must not be shared.
    get_services.cache_clear()


@worker_shutting_down.connect
def _note_stopping(**_: object) -> None:
    stopping.set()


def _check_pool(pool: type) -> None:
    """Refuse pools that cannot do this worker's work; Celery's solo pool can, one task at a time."""
    if pool.__module__ not in {"webhooks.pool", "celery.concurrency.solo"}:
        # Celery's signals let no other error through.
        raise SystemExit(
            f"Error: this worker has a pool of its own, which cannot be {pool.__module__}: start it without `-P`. "
            "For more attempts at one time give `-c`; for more cores start more workers."
        )


def _keep_payloads_out_of_logs() -> None:
    """Silence the loggers that at DEBUG write what they are given: pymongo each command, Celery's pool arguments.

    Here and not at import: the log of a producer that imports this package is its own affair.
    """
    for name in ("pymongo", "celery.pool"):
        logging.getLogger(name).setLevel(logging.INFO)


def _log_one_line_per_attempt() -> None:
    """Silence Celery's lines of each task that was received and that ended: one line of ours tells of each attempt."""
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _allow_many_connections() -> None:
    """Raise the limit of open files as far as the system lets us: idle connections to many endpoints add up."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _read_json_as_it_is() -> None:
    """Make the worker read JSON without kombu's extension of it.

    kombu turns ``{"__type__": …, "__value__": …}`` into Python objects, and drops a message in which that fails. An
    event of a producer with nothing but Celery may hold just that, typed in by a customer; it is sent as it came.
    """
    serialization.register("json", dumps, _loads, content_type="application/json", content_encoding="utf-8")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python takes the last one, other readers the first: what the producer meant cannot be told.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _parse_int(digits: str) -> int | float:
    # Python refuses to read a number of thousands of digits, which would drop the message. Any number beyond 64 bits
    # is refused later, with words; infinity stands for it until then.
    return int(digits) if len(digits) <= 20 else math.inf


#: Made once: `json.loads` makes one for each text, when it is given hooks.
_DECODER = json.JSONDecoder(parse_int=cast("Any", _parse_int), object_pairs_hook=_no_key_twice)


def _loads(text: str | bytes) -> Any:
    return _DECODER.decode(text if isinstance(text, str) else text.decode())


def _make_indexes() -> None:
    """Make the indexes as soon as MongoDB answers; deliveries do not wait for it."""
    services = get_services()
    while not stopping.is_set():
        try:
            services.webhooks.ensure_indexes()
            services.logs.ensure_indexes(get_settings().log_ttl_days)
            services.ledger.ensure_indexes()
            services.kept.ensure_indexes()
            services.gates.ensure_indexes()
            services.outbox.ensure_indexes()
            services.dead_letters.ensure_indexes()
        except StoreUnavailable as error:
            logger.warning("waiting to make the indexes: %s", error)
            stopping.wait(5)
        except Exception:
            logger.exception("the indexes could not be made; deliveries work, questions to the logs may be slow")
            return
        else:
            return
