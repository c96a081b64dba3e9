"""What a worker does and says when it starts, before its first message. Loaded in workers alone: `app` includes it."""

import gc
import json
import logging
import math
import os
import resource
import threading
from typing import Any, cast

from celery.bin.worker import worker
from celery.concurrency import get_implementation
from celery.signals import celeryd_after_setup, worker_init
from kombu import serialization
from kombu.utils.json import dumps

from webhooks.config import find_notices, get_settings
from webhooks.delivery.services import get_services
from webhooks.delivery.stopping import stopping
from webhooks.errors import StoreUnavailable
from webhooks.producer.app import app
from webhooks.producer.environment import find_overruled
from webhooks.rules.remedies import explain_database
from webhooks.transport.bounded import BoundedConnection

logger = logging.getLogger(__name__)

#: Objects made and not freed, until the youngest are looked at; and of how often that is done, how often the older are.
_GC_THRESHOLDS = (20_000, 20, 50)


@celeryd_after_setup.connect
def _warn(**_: object) -> None:
    """Log a warning for each; the signal is sent once logging is set up."""
    for notice in [*find_notices(os.environ), *find_overruled(os.environ, worker)]:
        logger.warning("%s", notice)


@worker_init.connect
def _prepare_worker(sender: Any, **_: object) -> None:
    if sender.app is not app:  # a service's own worker, which hands events in
        return
    _check_pool(get_implementation(sender.pool_cls))
    _read_json_as_it_is()
    _keep_payloads_out_of_logs()
    _log_one_line_per_attempt()
    BoundedConnection.is_patient = True
    _allow_many_connections()
    _collect_less_often()
    get_services()  # before there are threads: two that ask at one time would each open their own
    threading.Thread(target=_make_indexes, name="make-indexes", daemon=True).start()


def _collect_less_often() -> None:
    """Have Python's garbage collector look at what a delivery leaves behind once in some hundred deliveries.

    Celery's requests hold themselves in cycles, so by default it runs several times per batch, over all that the worker
    has loaded as well. Measured: 745 µs of CPU time per delivery before, 637 after.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def _check_pool(pool: Any) -> None:
    """Refuse pools that cannot do this worker's work; Celery's solo pool can, one task at a time."""
    if pool.__module__ not in {"webhooks.worker.pool", "celery.concurrency.solo"}:
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
            services.deliveries.ensure_indexes()
            services.leases.ensure_indexes()
            services.held.ensure_indexes()
            services.gates.ensure_indexes()
            services.outbox.ensure_indexes()
            services.dead_letters.ensure_indexes()
        except StoreUnavailable as error:
            logger.warning("waiting to make the indexes: %s", explain_database(error))
            stopping.wait(5)
        except Exception:
            logger.exception("the indexes could not be made; deliveries work, questions to the logs may be slow")
            return
        else:
            return
