"""Acks, requeued messages, and the messages that a channel holds."""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

import redis
from kombu.transport import redis as plain
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

from webhooks.transport.holder import process_token
from webhooks.transport.messages import Message, Settlement, Take, mark_redelivered, split_entry
from webhooks.transport.script_runner import ScriptRunner
from webhooks.transport.scripts import BATCH, OVERDUE, RESTORING_KEY, SETTLE, WAKE_KEY
from webhooks.transport.settlements import Outbox, outbox_of, take_out

logger = logging.getLogger(__name__)

#: Minimum interval between searches for overdue messages; otherwise a tenth of the visibility timeout.
_RESTORE_EVERY_S = 1.0
#: Duration of the lock that keeps other workers from the same search.
_RESTORING_MS = 900


class QoS(plain.QoS):
    """Keeps the messages that this channel holds; the scripts keep them in Redis."""

    _restore_at = 0.0

    @property
    def _held(self) -> dict[str, Message]:
        return cast("dict[str, Message]", self._delivered)

    def append(self, message: Message, delivery_tag: str) -> None:
        """Add a message that was taken; `TAKE` has added it in Redis."""
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Ack a message; from any thread, also after the connection broke."""
        virtual.QoS.ack(self, delivery_tag)
        self.channel.settle(Settlement(delivery_tag, "ack"))

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Requeue a message as the next to be taken, or drop it."""
        message = self._held.get(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)
        if not requeue:
            self.channel.settle(Settlement(delivery_tag, "ack"))
        elif message is not None:  # None if closing the channel has requeued it
            self.channel.settle(self.channel.giving_back(delivery_tag, message.queue, message._raw))

    def restore_unacked(self, client: Any = None) -> None:
        """Requeue all messages that this channel holds; the oldest is taken first."""
        self._flush()
        while self._held:
            tag, message = self._held.popitem()
            self.channel.outbox.settlements.append(self.channel.giving_back(tag, message.queue, message._raw))
        self.channel.flush()

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """Requeue dead workers' messages, at most once per interval."""
        now = time.monotonic()
        if now < self._restore_at:
            return
        self._restore_at = now + max(_RESTORE_EVERY_S, self.visibility_timeout / 10)
        self.channel.line_up_forgotten()
        self.channel.restore_overdue()


class SettlingChannel(ScriptRunner):
    """Settles messages that were taken: acks, requeues or parks them."""

    outbox: Outbox

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        client = self.connection.client
        broker = (client.hostname, client.port, client.virtual_host, self.global_keyprefix, self.unacked_key)
        self.outbox = outbox_of(broker)

    def settle(self, settlement: Settlement) -> None:
        """Send a settlement, from any thread: in the event loop's next turn, or at once if there is no event loop.

        After a lost connection the next one sends it.
        """
        self.outbox.settlements.append(settlement)
        poller = None if self.closed or self._closing else self.connection.cycle
        if poller is None:
            return
        if poller.loop is None:
            self.flush()
        elif poller.thread_id != threading.get_ident():
            poller.take_turn_soon()  # which calls this channel's `look_after`

    def flush(self) -> None:
        """Send all waiting settlements; on an error they go on waiting."""
        while settlements := self._next_settlements():
            try:
                self.run(SETTLE, self._notes, self._flatten(settlements))
            except BaseException:
                self.outbox.settlements.extendleft(reversed(settlements))
                raise

    def _flatten(self, settlements: Sequence[Settlement]) -> list[str | bytes | int]:
        acks = [settlement.tag for settlement in settlements if settlement.act == "ack"]
        others = [part for settlement in settlements if settlement.act != "ack" for part in settlement]
        return [self.prefixed(""), len(acks), *acks, *others]

    def _next_settlements(self) -> list[Settlement]:
        reports = take_out(self.outbox.reports, BATCH)
        return reports + take_out(self.outbox.settlements, BATCH - len(reports))

    def giving_back(
        self, tag: str, queue: str, payload: dict[str, Any] | bytes, act: str = "next", seen: str = ""
    ) -> Settlement:
        """Make the settlement that requeues a message as the next to be taken, marked as redelivered.

        Args:
            tag: the tag that ends.
            queue: the queue.
            payload: the message; unreadable bytes are requeued as they are.
            act: see `SETTLE`.
            seen: the tag's score, for "stale".
        """
        mark_redelivered(payload)
        value = payload if isinstance(payload, bytes) else dumps(payload)
        key = self._q_for_pri(queue, self._get_message_priority(payload))
        prefix = self.global_keyprefix
        return Settlement(tag, act, seen, prefix + key, value, prefix + WAKE_KEY.format(queue))

    # ── Giving back ─────────────────────────────────────────────────────────────────────────────────────────────────
    def restore_overdue(self) -> None:
        """Requeue messages whose holder's lease has lapsed, or that were taken longer ago than the visibility timeout.

        Does nothing while another worker does it.
        """
        keys, pause_ms = [*self._notes, RESTORING_KEY], _RESTORING_MS
        while True:
            asked = [self.prefixed(""), self.visibility_timeout, pause_ms, BATCH, process_token()]
            _, *found = self.run(OVERDUE, keys, asked)
            entries = list(zip(found[::3], found[1::3], found[2::3], strict=True))
            for tag, score, entry in reversed(entries):  # so that the oldest is taken first
                self._give_back_entry(bytes_to_str(tag), entry, "stale", bytes_to_str(score))
            self.flush()
            if len(entries) < BATCH:
                return
            pause_ms = 0

    def _give_back_lost_takes(self) -> None:
        while self.outbox.lost_takes:
            take = self.outbox.lost_takes[0]
            # Redis may not have run it yet.
            self.run(SETTLE, self._notes, self._flatten([Settlement(take.id, "over")]))
            entries = self._script_client.hmget(self.global_keyprefix + self.unacked_key, take.tags)
            for tag, entry in reversed(list(zip(take.tags, entries, strict=True))):
                if entry is not None:
                    self._give_back_entry(tag, entry, "next")
            self.flush()
            self.outbox.lost_takes.popleft()

    def _give_back_entry(self, tag: str, entry: bytes, act: str, seen: str = "") -> None:
        """Requeue the message of an entry of ``unacked``, ours or a plain worker's, with the next flush."""
        try:
            payload, exchange, routing_key = loads(bytes_to_str(entry))
            # A plain worker's entry has no queue, and its exchange may have several or be gone.
            queues = cast("list[str]", self._lookup(exchange, routing_key)) or self.active_queues[:1]
            acts = [act, *("also" for _ in queues[1:])]
            giving_back = [
                self.giving_back(tag, queue, payload, act, seen) for queue, act in zip(queues, acts, strict=True)
            ]
        except (redis.RedisError, OSError):
            raise
        except Exception:  # noqa: BLE001 - a bad entry must not block the others; the consumer reports it
            raw, queue = split_entry(entry, self.active_queues)
            giving_back = [self.giving_back(tag, queue, raw, act, seen)]
        self.outbox.settlements.extend(giving_back)

    def _note_lost(self, take: Take) -> None:
        self.outbox.settlements.extendleft(reversed(take.settlements))
        self.outbox.lost_takes.append(take)
