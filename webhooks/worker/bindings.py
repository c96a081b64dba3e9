"""Removes bindings of earlier versions from the broker.

They bound every queue to exchange ``celery`` with key ``celery``, so a message published there reached all queues.
"""

import logging
from typing import Any, cast

from celery.signals import worker_ready
from kombu.transport import redis as plain

from webhooks.errors import trace
from webhooks.producer.app import app

logger = logging.getLogger(__name__)

_EXCHANGE = _KEY = "celery"


@worker_ready.connect
def _unbind_own_queues(**_: object) -> None:
    try:
        with app.connection_for_write() as connection:
            channel = cast("Any", connection.default_channel)
            for queue in app.amqp.queues:
                if queue != _KEY:
                    _unbind(channel, queue)
    except Exception as error:  # noqa: BLE001 - the worker works without it, and the next start tries again
        logger.warning("bindings of an earlier version may be left on the broker: %s", trace(error))


def _unbind(channel: Any, queue: str) -> None:
    if not isinstance(channel, plain.Channel):
        channel.queue_unbind(queue, _EXCHANGE, _KEY)
        return
    # kombu's `queue_unbind` removes the binding only from this process's memory.
    member = channel.sep.join([_KEY, "", queue])
    with channel.conn_or_acquire() as client:
        client.srem(channel.keyprefix_queue % _EXCHANGE, member)
        client.srem(channel.keyprefix_binding_permanent % _EXCHANGE, member)
