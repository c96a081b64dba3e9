"""The connections, stores and sender of a worker process."""

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from webhooks.config import Settings, get_settings
from webhooks.delivery.attempt import AttemptRunner
from webhooks.delivery.operators import Operators
from webhooks.delivery.records import DeliveryRecords
from webhooks.rules.encryption import Vault
from webhooks.rules.retry import RetryPolicy
from webhooks.sender import Sender
from webhooks.store.actions import ActionStore
from webhooks.store.deadletters import DeadLetterStore
from webhooks.store.deliveries import DeliveryStore
from webhooks.store.failed import FailedStore
from webhooks.store.gates import GateStore
from webhooks.store.held import HeldDeliveries
from webhooks.store.leases import Leases
from webhooks.store.logs import LogStore
from webhooks.store.mongo import open_database
from webhooks.store.notices import NoticeStore
from webhooks.store.outbox import Outbox
from webhooks.store.overview import OverviewStore
from webhooks.store.resend_jobs import ResendJobStore
from webhooks.store.traces import TraceStore
from webhooks.store.webhooks import WebhookStore
from webhooks.transport.holder import process_token

if TYPE_CHECKING:
    from webhooks.delivery.tracing import AttemptTracer

#: Concurrent requests of a process. The size of the pool is the effective limit.
_MOST_REQUESTS = 10_000


class Progress:
    """How far this process has advanced in its queue, which is sorted by due time."""

    def __init__(self) -> None:
        #: Due time of the delivery taken last; None before the first.
        self.taken_due_at: datetime | None = None
        #: Company with events in hand → deliveries of those that were read.
        self.served: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that the tasks of a process use."""

    webhooks: WebhookStore
    logs: LogStore
    dead_letters: DeadLetterStore
    deliveries: DeliveryStore
    leases: Leases
    held: HeldDeliveries
    gates: GateStore
    notices: NoticeStore
    outbox: Outbox
    traces: TraceStore
    actions: ActionStore
    overview: OverviewStore
    failed: FailedStore
    resend_jobs: ResendJobStore
    records: DeliveryRecords
    attempt_runner: AttemptRunner
    progress: Progress
    #: None when no operators' URL is set.
    operators: Operators | None = None
    #: None when OpenTelemetry is not installed.
    tracer: "AttemptTracer | None" = None


@cache
def get_services() -> Services:
    """Return the services of this process; its connections open on first use.

    Raises:
        InvalidSettings: a setting is invalid.
    """
    settings = get_settings()
    database = open_database(settings.mongodb_url, settings.mongodb_timeout_s)
    logs, leases = LogStore(database), Leases(database, process_token())
    ledger = DeliveryStore(database, settings.claim_s, settings.mongodb_timeout_s, leases=leases)
    sender = Sender(
        allowed_networks=settings.allowed_networks,
        allowed_ports=settings.allowed_ports,
        proxy=settings.proxy_url,
        connect_timeout_s=settings.connect_timeout_s,
        total_timeout_s=settings.total_timeout_s,
        max_response_bytes=settings.max_response_bytes,
        ca_bundle=settings.ca_bundle,
        pool_size=settings.concurrency,
        concurrency=_MOST_REQUESTS,
    )
    policy = RetryPolicy(settings.retry_delay_s, settings.max_retries, settings.max_retry_after_s)
    held, gates, webhooks = HeldDeliveries(database, ledger), GateStore(database), WebhookStore(database)
    tracer = _open_tracer()
    return Services(
        webhooks=webhooks,
        logs=logs,
        dead_letters=DeadLetterStore(database),
        deliveries=ledger,
        leases=leases,
        held=held,
        gates=gates,
        notices=NoticeStore(database),
        outbox=Outbox(database),
        traces=TraceStore(database),
        actions=ActionStore(database),
        overview=OverviewStore(database),
        failed=FailedStore(database),
        resend_jobs=ResendJobStore(database),
        records=DeliveryRecords(ledger, held, logs, gates, webhooks),
        attempt_runner=AttemptRunner(
            sender=sender,
            policy=policy,
            vault=Vault(settings.encryption_key),
            probe_interval_s=settings.probe_interval_s,
            tracer=tracer,
        ),
        progress=Progress(),
        operators=None if settings.operators_url is None else _open_operators(settings, settings.operators_url),
        tracer=tracer,
    )


def _open_tracer() -> "AttemptTracer | None":
    try:
        return import_module("webhooks.delivery.tracing").AttemptTracer()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        return None


def _open_operators(settings: Settings, url: str) -> Operators:
    return Operators(
        url,
        settings.operators_secret,
        connect_timeout_s=settings.connect_timeout_s,
        total_timeout_s=settings.total_timeout_s,
        ca_bundle=settings.ca_bundle,
    )
