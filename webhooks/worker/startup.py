"""Start-up of a worker: configuration warnings, process-wide settings, MongoDB indexes."""

import gc
import json
import logging
import math
import os
import resource
import threading
from contextlib import suppress
from typing import Any, cast

from celery.bin.worker import worker
from celery.concurrency import get_implementation
from celery.signals import celeryd_after_setup, worker_init, worker_shutting_down
from kombu import serialization
from kombu.utils.json import dumps
from pydantic_core import from_json

from webhooks.config import find_notices, get_settings
from webhooks.delivery.services import get_services
from webhooks.delivery.stopping import stopping
from webhooks.errors import StoreUnavailable
from webhooks.models.wire import no_key_twice
from webhooks.producer.app import app
from webhooks.producer.environment import find_overruled
from webhooks.rules.remedies import explain_database
from webhooks.transport.bounded import BoundedConnection

logger = logging.getLogger(__name__)

#: See `gc.set_threshold` and `_collect_less_often`.
_GC_THRESHOLDS = (20_000, 20, 50)


@celeryd_after_setup.connect
def _warn(**_: object) -> None:
    for notice in [*find_notices(os.environ), *find_overruled(os.environ, worker)]:
        logger.warning("%s", notice)


@worker_init.connect
def _prepare_worker(sender: Any, **_: object) -> None:
    if sender.app is not app:  # a service's own worker, which only produces events
        return
    _check_pool(get_implementation(sender.pool_cls))
    _read_json_as_it_is()
    _keep_payloads_out_of_logs()
    _log_one_line_per_attempt()
    BoundedConnection.is_patient = True
    _allow_many_connections()
    _collect_less_often()
    get_services()  # before there are threads, which would each open their own
    threading.Thread(target=_make_indexes, name="make-indexes", daemon=True).start()


# Celery takes this lock inside the operating system's signal handler, where a second signal may come: see `stopping`.
cast("Any", worker_shutting_down).lock = threading.RLock()


@worker_shutting_down.connect
def _note_stopping(**_: object) -> None:
    stopping.set()


def _collect_less_often() -> None:
    """Run Python's garbage collector seldom.

    A batch makes thousands of objects, which would make it run several times per batch although it finds nothing: the
    objects of a delivery are in no cycle. Measured: one run in 12 s at 950 deliveries/s, which took 10 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def _check_pool(pool: Any) -> None:
    """Refuse other pools, except Celery's solo pool, which runs one task at a time."""
    if pool.__module__ not in {"webhooks.worker.pool", "celery.concurrency.solo"}:
        # Celery's signals let no other error through.
        raise SystemExit(
            f"Error: this worker has a pool of its own, which cannot be {pool.__module__}: start it without `-P`. "
            "For more attempts at one time give `-c`; for more cores start more workers."
        )


def _keep_payloads_out_of_logs() -> None:
    """Silence the loggers that write payloads at DEBUG: pymongo logs commands, Celery's pool logs arguments.

    Not at import: a producer that imports this package configures its own logging.
    """
    for name in ("pymongo", "celery.pool"):
        logging.getLogger(name).setLevel(logging.INFO)


def _log_one_line_per_attempt() -> None:
    """Silence Celery's two lines per task: each attempt has one line of ours."""
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _allow_many_connections() -> None:
    """Raise the limit of open files to its maximum, for idle connections to many endpoints."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _read_json_as_it_is() -> None:
    """Read JSON without kombu's extension.

    kombu turns ``{"__type__": …, "__value__": …}`` into Python objects and drops a message in which that fails. An
    event may contain such an object, entered by a customer, and must be sent as it came.
    """
    serialization.register("json", dumps, _loads, content_type="application/json", content_encoding="utf-8")


def _parse_int(digits: str) -> int | float:
    # Python refuses numbers with thousands of digits, which would drop the message. As infinity the number reaches the
    # event's validation, which refuses all beyond 64 bits with a clear error.
    return int(digits) if len(digits) <= 20 else math.inf


#: How the arguments begin of an event that a producer with this package sent: its JSON text is one string, so no key of
#: it is at stake, and a quicker decoder does.
_OWN_EVENT = b'[["'
#: `json.loads` would make a decoder per text when given hooks.
_DECODER = json.JSONDecoder(parse_int=cast("Any", _parse_int), object_pairs_hook=no_key_twice)


def _loads(text: str | bytes) -> Any:
    if isinstance(text, bytes):
        if text.startswith(_OWN_EVENT):
            with suppress(ValueError):  # for example of UTF-8 or of depth: the other decoder says what to do
                return from_json(text)
        text = text.decode()
    return _DECODER.decode(text)


def _make_indexes() -> None:
    """Make the indexes as soon as MongoDB answers; deliveries do not wait for them."""
    services = get_services()
    stores = [services.webhooks, services.deliveries, services.leases, services.held, services.gates, services.outbox]
    while not stopping.is_set():
        try:
            services.logs.ensure_indexes(get_settings().log_ttl_days)
            for store in (*stores, services.actions, services.dead_letters, services.resend_jobs):
                store.ensure_indexes()
            services.traces.ensure_indexes(get_settings().log_ttl_days)
        except StoreUnavailable as error:
            logger.warning("waiting to make the indexes: %s", explain_database(error))
            stopping.wait(5)
        except Exception:
            logger.exception("the indexes could not be made; deliveries work, questions to the logs may be slow")
            return
        else:
            return
