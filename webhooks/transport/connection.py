"""The transport, the connections that choose it, and what Celery makes them with."""

from typing import Any

from celery.app import amqp
from kombu import connection
from kombu.transport import redis as plain

from webhooks.transport.bounded import BoundedConnection
from webhooks.transport.channel import Channel
from webhooks.transport.poller import Poller

#: In ``broker_transport_options``: true chooses this transport where the broker is a Redis.
OPTION = "webhooks_atomic"


class Transport(plain.Transport):
    """kombu's Redis transport with the channel above."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Join Celery's event loop."""
        self.cycle.turn_with(loop)
        super().register_with_event_loop(connection, loop)

    def _collect(self, connection: Any) -> None:
        """Drop a broken connection. kombu calls this instead of closing, where a transport has it."""
        for channel in {*(self.channels or ()), *self._avail_channels}:
            channel.abandon()
        self.cycle.close()


class _ChoosesTransport(BoundedConnection):
    """kombu's connection, which takes this transport for a Redis where the options say so.

    Not an alias in kombu's table: then the broker's URL would have a scheme of ours, which Flower cannot read, TLS
    would go by kombu's treatment of ``rediss`` no more, and a second URL to fail over to would bring the plain one.
    """

    def get_transport_cls(self) -> Any:
        """Choose the transport."""
        chosen = super().get_transport_cls()
        return Transport if chosen is plain.Transport and (self.transport_options or {}).get(OPTION) else chosen


class PooledConnection(_ChoosesTransport, connection.PooledConnection):
    """A connection of a pool: what Celery publishes with, in producers and, for retries, in workers."""


class ConnectionPool(connection.ConnectionPool):
    """A pool of the connections above; kombu's makes its own whatever it is made from."""

    def new(self) -> PooledConnection:
        """Make one more."""
        return PooledConnection(self, **dict(self.connection._info(resolve=False)))


class Connection(_ChoosesTransport):
    """A connection that is no pool's: what a worker consumes with."""

    def Pool(self, limit: int | None = None, **kwargs: Any) -> ConnectionPool:  # noqa: N802 - kombu's name
        """Make a pool of connections like this one."""
        return ConnectionPool(self, limit, **kwargs)


class AMQP(amqp.AMQP):
    """What Celery makes connections with; `app` hands it over."""

    Connection = Connection
