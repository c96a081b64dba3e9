"""Threads that renew this process's leases: one thread per server, so an outage of one does not affect the other.

They share no connections, locks or event loop with the worker. They start before the worker takes its first message
and end after it has returned its last.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from celery.signals import worker_init, worker_shutdown
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from webhooks.config import get_settings
from webhooks.delivery.meters import Fault, meters
from webhooks.delivery.services import get_services
from webhooks.errors import StoreUnavailable, trace
from webhooks.producer.app import app
from webhooks.transport.channel import Channel
from webhooks.transport.connection import Transport
from webhooks.transport.holder import RENEW_AGAIN_S, RENEW_EVERY_S
from webhooks.worker.digest import Digest

logger = logging.getLogger(__name__)

#: Timeout for Redis; the next try uses a new connection.
_REDIS_TIMEOUT_S = 2.0
#: Timeout for ending the leases at shutdown. Otherwise they lapse.
_END_TIMEOUT_S = 3.0

_OUTAGES = (StoreUnavailable, OperationalError, RedisError, OSError)


class Renewal:
    """Renews one lease until it is ended."""

    def __init__(self, name: str, renew: Callable[[], object], end: Callable[[], object]) -> None:
        """Make the renewal of one lease.

        Args:
            name: the server's name, for the log.
            renew: renews the lease; may raise any error.
            end: ends the lease; may raise any error.
        """
        self.name = name
        self._renew = renew
        self._end = end
        self._is_ending = threading.Event()
        #: Whether the last renewal succeeded; None before the first has ended.
        self.is_good: bool | None = None
        self._thread = threading.Thread(target=self._run, name=f"lease-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread, which renews at once."""
        self._thread.start()

    def end(self) -> None:
        """Ask the thread to end the lease and itself."""
        self._is_ending.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            was_bad = self.is_good is False
            self.is_good = self._try(self._renew, is_logged=not was_bad)
            if not self.is_good:
                meters.count_fault(Fault.LEASE_NOT_RENEWED)
            elif was_bad:
                logger.info("the lease in %s is renewed again", self.name)
            if self._is_ending.wait(RENEW_EVERY_S if self.is_good else RENEW_AGAIN_S):
                self._try(self._end, is_logged=True)
                return

    def _try(self, action: Callable[[], object], *, is_logged: bool) -> bool:
        try:
            action()
        except _OUTAGES as error:
            if is_logged:
                logger.warning("the lease in %s is not renewed: %s", self.name, error)
        except Exception as error:  # noqa: BLE001 - the thread must go on; the next renewal may succeed
            logger.error("renewing the lease in %s met a defect: %s", self.name, trace(error))  # noqa: TRY400
        else:
            return True
        return False


def _renew_in_mongodb(node: str) -> None:
    # Looked up each time: Celery's solo pool opens the services anew.
    services = get_services()
    services.leases.renew(node, Digest.of(get_settings()).to_wire())
    services.deliveries.release_given_up()


def _end_in_mongodb() -> None:
    get_services().leases.release()


class RedisLease:
    """The lease of this process in Redis, over its own connection."""

    def __init__(self) -> None:
        self._connection: Any = None

    def renew(self) -> None:
        """Renew the lease.

        Raises:
            kombu.exceptions.OperationalError: Redis cannot be reached.
            redis.RedisError: Redis cannot be reached or refuses.
        """
        self._run(Channel.renew_lease)

    def end(self) -> None:
        """End the lease, as this process holds nothing any more; raises as `renew` does."""
        self._run(Channel.end_lease)
        self._close()

    def _run(self, action: Callable[[Channel], None]) -> None:
        try:
            if self._connection is None:
                options = {"socket_timeout": _REDIS_TIMEOUT_S, "socket_connect_timeout": _REDIS_TIMEOUT_S}
                self._connection = app.connection_for_read(transport_options=options)
                self._connection.ensure_connection(max_retries=1, timeout=_REDIS_TIMEOUT_S)
            action(self._connection.default_channel)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.collect()


#: This worker's, one per server.
renewals: list[Renewal] = []


@worker_init.connect
def _start(sender: Any, **_: object) -> None:
    if sender.app is not app:  # a service's own worker, which only produces events
        return
    renewals.append(Renewal("MongoDB", partial(_renew_in_mongodb, sender.hostname), _end_in_mongodb))
    if app.connection_for_read().get_transport_cls() is Transport:
        lease = RedisLease()
        renewals.append(Renewal("Redis", lease.renew, lease.end))
    for renewal in renewals:
        renewal.start()


@worker_shutdown.connect
def _end(**_: object) -> None:
    for renewal in renewals:
        renewal.end()
    for renewal in renewals:
        renewal.join(_END_TIMEOUT_S)
