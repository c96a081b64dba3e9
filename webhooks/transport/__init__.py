"""kombu's Redis transport, made atomic: a worker killed at any instant loses no message, and waiting costs it nothing.

Owns how messages move inside Redis between producers and workers. Never looks into a message's body. `app` hands its
``AMQP`` to Celery, and ``broker_transport_options`` choose it (``OPTION``); the broker's URL stays ``redis://…``.

What is promised, and how:

* **Taking** is one script (``TAKE``): it pops messages off the queues' lists and notes them in ``unacked`` and
  ``unacked_index``, as many as the prefetch allows. So a message is always in exactly one place of Redis. Queues take
  turns; among priorities the order is strict, as in kombu. In a queue with **lanes** (`lanes`; ``LANES_OPTION``) the
  lanes take turns instead, and priorities are not heeded: a producer must not pass the others by.
* **Acks** are collected, and travel with the next take, or alone when there is none to come (``SETTLE``). Each hold of
  a message has a tag of its own, made when it is taken: an ack that comes late cannot touch the hold of another
  worker, and an ack whose connection is gone is sent over the next one.
* **A message with an ETA** waits in a sorted set, scored by when it is due on Redis's clock, from its publishing on or,
  from a plain producer, from when it is first taken. The take that comes after its time moves it to its queue.
* **What a dead worker held** comes back when its lease has lapsed (``LEASE``, ``OVERDUE``): a process renews one, and
  each tag begins with its token. What is held without a lease comes back ``visibility_timeout`` later. What a stopping
  worker held, or a task rejected, comes back at once, to be taken next.
* **A lost connection** gives nothing back: the tasks at work finish, and ack over the next connection.
* **Messages of other clients** are taken as kombu's own transport takes them, also without headers (task protocol 1).
  What cannot be read comes to the consumer as a message that cannot be decoded (`NO_MESSAGE`): it neither stops a
  worker nor is lost.
* **A full Redis** (``maxmemory``) refuses publishing alone; taking, acks and the rest go on, so it drains.

Keys: kombu's own lists, ``unacked`` and ``unacked_index`` in kombu's format, so plain producers feed it and a plain
worker takes over (but not what is parked or stands in lanes). Besides those of `lanes`: ``webhooks.parked.<queue>``,
``webhooks.wake.<queue>`` (a token for one idle worker, for a second) and ``webhooks.restoring`` (one worker at a time
looks for overdue messages); all behind kombu's ``global_keyprefix``. Needs Redis 7.0 or any Valkey. Not for a cluster,
as kombu's own.
"""

from typing import Any

from celery.app import amqp
from kombu import connection
from kombu.transport import redis as plain

from webhooks.headers import LANE_HEADER, OTHERS
from webhooks.transport.bounded import BoundedConnection
from webhooks.transport.channel import LANES_OPTION, Channel, Poller, QoS, finish, hold_lane, limit_lane, report
from webhooks.transport.counts import QueueCounts, count_arguments, count_queues, read_counts
from webhooks.transport.lanes import FIRST_HEADER, RATE_HEADER, SERIAL, TAKEN_FROM_HEADER, Lanes, whole_of
from webhooks.transport.messages import NO_MESSAGE, Admission, LaneState, Message, Turn

__all__ = [
    "AMQP",
    "FIRST_HEADER",
    "LANES_OPTION",
    "LANE_HEADER",
    "NO_MESSAGE",
    "OPTION",
    "OTHERS",
    "RATE_HEADER",
    "SERIAL",
    "TAKEN_FROM_HEADER",
    "Admission",
    "BoundedConnection",
    "Channel",
    "Connection",
    "LaneState",
    "Lanes",
    "Message",
    "Poller",
    "QoS",
    "QueueCounts",
    "Transport",
    "Turn",
    "count_arguments",
    "count_queues",
    "finish",
    "hold_lane",
    "limit_lane",
    "read_counts",
    "report",
    "whole_of",
]

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
