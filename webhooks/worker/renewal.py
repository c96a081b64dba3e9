"""Threads that renew this process's leases, one for each server: while one is away, the other's goes on.

They share nothing with what a worker does: not its connections, locks or event loop. Started by Celery with the worker,
before it takes anything, and ended with it, after it has given everything back.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from celery.signals import worker_init, worker_shutdown
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from webhooks.delivery.services import get_services
from webhooks.errors import StoreUnavailable, trace
from webhooks.producer.app import app
from webhooks.transport.channel import Channel
from webhooks.transport.connection import Transport
from webhooks.transport.holder import RENEW_AGAIN_S, RENEW_EVERY_S

logger = logging.getLogger(__name__)

#: Seconds after which a Redis that does not answer is asked again, over a new connection.
_ANSWER_S = 2.0
#: Seconds that ending the leases may take at shutdown; they lapse by themselves.
_END_S = 3.0

_OUTAGES = (StoreUnavailable, OperationalError, RedisError, OSError)


class Renewal:
    """Renews one lease until it is ended."""

    def __init__(self, name: str, renew: Callable[[], object], end: Callable[[], object]) -> None:
        """Make one.

        Args:
            name: of the server, for the log.
            renew: says that this process lives. May raise whatever it likes.
            end: says that it holds nothing any more; likewise.
        """
        self._name = name
        self._renew = renew
        self._end = end
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread, which renews at once."""
        self._thread.start()

    def end(self) -> None:
        """Have the lease ended."""
        self._is_ending.set()

    def join(self, timeout_s: float) -> None:
        """Wait until it is."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        is_good = True
        while True:
            was_good, is_good = is_good, self._try(self._renew, is_told=is_good)
            if is_good and not was_good:
                logger.info("the lease in %s is renewed again", self._name)
            if self._is_ending.wait(RENEW_EVERY_S if is_good else RENEW_AGAIN_S):
                self._try(self._end, is_told=True)
                return

    def _try(self, action: Callable[[], object], *, is_told: bool) -> bool:
        try:
            action()
        except _OUTAGES as error:
            if is_told:
                logger.warning("the lease in %s is not renewed: %s", self._name, error)
        except Exception as error:  # noqa: BLE001 - the thread must go on, and the next time may go well
            logger.error("renewing the lease in %s met a defect: %s", self._name, trace(error))  # noqa: TRY400
        else:
            return True
        return False


def _renew_in_mongodb() -> None:
    # Looked up each time: Celery's solo pool has the services opened anew.
    get_services().leases.renew()


def _end_in_mongodb() -> None:
    get_services().leases.release()


class RedisLease:
    """The lease of this process in Redis, over a connection of its own."""

    def __init__(self) -> None:
        self._connection: Any = None

    def renew(self) -> None:
        """Say that this process lives.

        Raises:
            kombu.exceptions.OperationalError: Redis cannot be reached.
            redis.RedisError: likewise, or it refuses.
        """
        self._run(Channel.renew_lease)

    def end(self) -> None:
        """Say that it holds nothing any more; raises as `renew` does."""
        self._run(Channel.end_lease)
        self._close()

    def _run(self, action: Callable[[Channel], None]) -> None:
        try:
            if self._connection is None:
                options = {"socket_timeout": _ANSWER_S, "socket_connect_timeout": _ANSWER_S}
                self._connection = app.connection_for_read(transport_options=options)
                self._connection.ensure_connection(max_retries=1, timeout=_ANSWER_S)
            action(self._connection.default_channel)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.collect()


_renewals: list[Renewal] = []


@worker_init.connect
def _start(sender: Any, **_: object) -> None:
    if sender.app is not app:  # a service's own worker, which hands events in
        return
    _renewals.append(Renewal("MongoDB", _renew_in_mongodb, _end_in_mongodb))
    if app.connection_for_read().get_transport_cls() is Transport:
        lease = RedisLease()
        _renewals.append(Renewal("Redis", lease.renew, lease.end))
    for renewal in _renewals:
        renewal.start()


@worker_shutdown.connect
def _end(**_: object) -> None:
    for renewal in _renewals:
        renewal.end()
    for renewal in _renewals:
        renewal.join(_END_S)
