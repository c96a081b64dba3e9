"""Acks, what is given back to its queue, and which messages this channel holds."""

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any, cast

import redis
from kombu.transport import redis as plain
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

from webhooks.transport.holder import process_token
from webhooks.transport.messages import (
    Message,
    Settlement,
    Take,
    mark_redelivered,
    split_entry,
)
from webhooks.transport.script_runner import ScriptRunner
from webhooks.transport.scripts import (
    BATCH,
    OVERDUE,
    RESTORING_KEY,
    SETTLE,
    WAKE_KEY,
)
from webhooks.transport.settlements import Outbox, outbox_of, take_out

logger = logging.getLogger(__name__)


#: Seconds between two looks for overdue messages, at least; otherwise a tenth of the visibility timeout.
_RESTORE_EVERY_S = 1.0


#: Milliseconds for which one worker's look for overdue messages keeps the others from theirs.
_RESTORING_MS = 900


class QoS(plain.QoS):
    """Notes which messages this channel holds; the noting in Redis is the scripts' work."""

    _look_again_at = 0.0

    @property
    def _held(self) -> dict[str, Message]:
        return cast("dict[str, Message]", self._delivered)

    def append(self, message: Message, delivery_tag: str) -> None:
        """Note a message that was taken: Redis has noted it already."""
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Settle a message that is done. Any thread may, also after the connection broke."""
        virtual.QoS.ack(self, delivery_tag)
        self.channel.settle(Settlement(delivery_tag, "ack"))

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a message back, to be taken next, or drop it."""
        message = self._held.get(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)
        if not requeue:
            self.channel.settle(Settlement(delivery_tag, "ack"))
        elif message is not None:  # None when it went back already, as its channel was closed
            self.channel.settle(self.channel.giving_back(delivery_tag, message.queue, message._raw))

    def restore_unacked(self, client: Any = None) -> None:
        """Give back all that this channel holds, the oldest to be taken first."""
        self._flush()
        while self._held:
            tag, message = self._held.popitem()
            self.channel.outbox.settlements.append(self.channel.giving_back(tag, message.queue, message._raw))
        self.channel.flush()

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """Give back what dead workers held, as often as is worth a look. kombu calls it, and so does each poll."""
        now = time.monotonic()
        if now < self._look_again_at:
            return
        self._look_again_at = now + max(_RESTORE_EVERY_S, self.visibility_timeout / 10)
        self.channel.line_up_forgotten()
        self.channel.restore_overdue()


class SettlingChannel(ScriptRunner):
    """Tells Redis what becomes of messages that were taken."""

    #: Shared by all channels of this process to one Redis.
    outbox: Outbox

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        client = self.connection.client
        broker = (client.hostname, client.port, client.virtual_host, self.global_keyprefix, self.unacked_key)
        self.outbox = outbox_of(broker)

    def settle(self, settlement: Settlement) -> None:
        """Have Redis told what becomes of a message: within the event loop's turn, or at once where there is none.

        Any thread may. After the connection broke, the next one tells it.
        """
        self.outbox.settlements.append(settlement)
        poller = None if self.closed or self._closing else self.connection.cycle
        if poller is None:
            return
        if poller.loop is None:
            self.flush()
        elif poller.thread_id != threading.get_ident():
            poller.take_turn_soon()  # it looks after this channel

    def flush(self) -> None:
        """Tell Redis all that waits to be told; on an error it goes on waiting."""
        while settlements := self._next_settlements():
            try:
                self.run(SETTLE, self._notes, self._flatten(settlements))
            except BaseException:
                self.outbox.settlements.extendleft(reversed(settlements))
                raise

    def _flatten(self, settlements: Iterable[Settlement]) -> list[str | bytes]:
        return [self.prefixed(""), *(part for settlement in settlements for part in settlement)]

    def _next_settlements(self) -> list[Settlement]:
        reports = take_out(self.outbox.reports, BATCH)
        return reports + take_out(self.outbox.settlements, BATCH - len(reports))

    def giving_back(
        self, tag: str, queue: str, payload: dict[str, Any] | bytes, act: str = "next", seen: str = ""
    ) -> Settlement:
        """Make the settlement that queues a message again, to be taken next, marked as kombu marks it.

        Args:
            tag: of the hold that ends.
            queue: where it goes.
            payload: the message; bytes that cannot be read go back as they are.
            act: see `SETTLE`.
            seen: the score that the hold had, for "stale".
        """
        mark_redelivered(payload)
        value = payload if isinstance(payload, bytes) else dumps(payload)
        key = self._q_for_pri(queue, self._get_message_priority(payload))
        prefix = self.global_keyprefix
        return Settlement(tag, act, seen, prefix + key, value, prefix + WAKE_KEY.format(queue))

    # ── Giving back ─────────────────────────────────────────────────────────────────────────────────────────────────
    def restore_overdue(self) -> None:
        """Give back what a process whose lease has lapsed holds, and what was taken longer ago than visibility timeout.

        Not while another worker is just doing it.
        """
        keys, pause_ms = [*self._notes, RESTORING_KEY], _RESTORING_MS
        while True:
            asked = [self.prefixed(""), self.visibility_timeout, pause_ms, BATCH, process_token()]
            _, *found = self.run(OVERDUE, keys, asked)
            entries = list(zip(found[::3], found[1::3], found[2::3], strict=True))
            for tag, score, entry in reversed(entries):  # the oldest is to be taken first
                self._give_back_entry(bytes_to_str(tag), entry, "stale", bytes_to_str(score))
            self.flush()
            if len(entries) < BATCH:
                return
            pause_ms = 0

    def _give_back_lost_takes(self) -> None:
        while self.outbox.lost_takes:
            take = self.outbox.lost_takes[0]
            entries = self._script_client.hmget(self.global_keyprefix + self.unacked_key, take.tags)
            for tag, entry in reversed(list(zip(take.tags, entries, strict=True))):
                if entry is not None:
                    self._give_back_entry(tag, entry, "next")
            self.flush()
            self.outbox.lost_takes.popleft()

    def _give_back_entry(self, tag: str, entry: bytes, act: str, seen: str = "") -> None:
        """Queue again, in the next flush, what an entry of ``unacked`` holds: ours or a plain worker's."""
        try:
            payload, exchange, routing_key = loads(bytes_to_str(entry))
            # A plain worker's exchange may lead to several queues, or be gone; which queue it was, nobody noted.
            queues = cast("list[str]", self._lookup(exchange, routing_key)) or self.active_queues[:1]
            acts = [act, *("also" for _ in queues[1:])]
            giving_back = [
                self.giving_back(tag, queue, payload, act, seen) for queue, act in zip(queues, acts, strict=True)
            ]
        except (redis.RedisError, OSError):
            raise
        except Exception:  # noqa: BLE001 - one bad entry must not keep the others; whoever takes it says what is wrong
            raw, queue = split_entry(entry, self.active_queues)
            giving_back = [self.giving_back(tag, queue, raw, act, seen)]
        self.outbox.settlements.extend(giving_back)

    def _note_lost(self, take: Take) -> None:
        self.outbox.settlements.extendleft(reversed(take.settlements))
        self.outbox.lost_takes.append(take)
