"""The transport, and the connection, pool and AMQP classes that select it."""

from typing import Any

from celery.app import amqp
from kombu import connection
from kombu.transport import redis as plain

from webhooks.transport.bounded import BoundedConnection
from webhooks.transport.channel import Channel
from webhooks.transport.poller import Poller

#: In ``broker_transport_options``: true selects this transport if the broker is Redis.
OPTION = "webhooks_atomic"


class Transport(plain.Transport):
    """kombu's Redis transport with our channel and poller."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Join Celery's event loop."""
        self.cycle.turn_with(loop)
        super().register_with_event_loop(connection, loop)

    def _collect(self, connection: Any) -> None:
        """Drop a broken connection; kombu calls this instead of closing it."""
        for channel in {*(self.channels or ()), *self._avail_channels}:
            channel.abandon()
        self.cycle.close()


class _ChoosesTransport(BoundedConnection):
    """Selects this transport for Redis if the options say so.

    A transport alias in kombu would need a URL scheme of ours, which Flower cannot read, would lose kombu's handling
    of ``rediss``, and a fail-over URL would select the plain transport.
    """

    def get_transport_cls(self) -> Any:
        """Return the transport's class."""
        chosen = super().get_transport_cls()
        return Transport if chosen is plain.Transport and (self.transport_options or {}).get(OPTION) else chosen


class PooledConnection(_ChoosesTransport, connection.PooledConnection):
    """A pool's connection: Celery publishes with it."""


class ConnectionPool(connection.ConnectionPool):
    """A pool of `PooledConnection`; kombu's pool always makes kombu's connections."""

    def new(self) -> PooledConnection:
        """Make a connection."""
        return PooledConnection(self, **dict(self.connection._info(resolve=False)))


class Connection(_ChoosesTransport):
    """A connection outside a pool: a worker consumes with it."""

    def Pool(self, limit: int | None = None, **kwargs: Any) -> ConnectionPool:  # noqa: N802 - kombu's name
        """Make a pool of connections like this one."""
        return ConnectionPool(self, limit, **kwargs)


class AMQP(amqp.AMQP):
    """Makes Celery use our connections."""

    Connection = Connection
