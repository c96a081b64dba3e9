"""The consuming channel: takes messages with `TAKE`, delivers them, and returns them when it closes."""

import itertools
import logging
import time
from collections.abc import Sequence
from queue import Empty
from typing import Any

from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps
from kombu.utils.scheduling import priority_cycle
from redis.exceptions import NoScriptError, ResponseError

from webhooks.transport.acks import QoS
from webhooks.transport.compact import restore
from webhooks.transport.holder import process_token
from webhooks.transport.lanes import TAKEN_FROM_HEADER
from webhooks.transport.messages import Message, Settlement, Take, due_at, end_of_entry, read_message, without_eta
from webhooks.transport.publishing import PublishingChannel
from webhooks.transport.script_runner import as_connection_error, read_reply
from webhooks.transport.scripts import ALIVE, BATCH, LEASE, PARKED_KEY, SETTLE, TAKE, WAKE_KEY
from webhooks.transport.settlements import held_tag
from webhooks.transport.sorter import sort

logger = logging.getLogger(__name__)

#: Maximum number of messages in one take.
_MOST_AT_ONCE = 100
#: Maximum idle poll interval in milliseconds. Redis checks blocking timeouts only when a command arrives or every
#: 100 ms, so the effective wait can be longer. A plain producer pushes no wake-up; its command ends only waits
#: that have timed out. Measured with 50: half of its messages to an idle worker waited for the 100 ms tick.
_WAIT_MS = 10
#: Minimum interval between takes of a busy worker, so that each take has many messages.
_GATHER_S = 0.025
#: Interval at which a worker reports its number of threads.
_ALIVE_EVERY_S = 1.0
#: Interval of the search for messages without a lane, if no take reports any.
_SORT_EVERY_S = 0.1

_channel_numbers = itertools.count(1)


class Channel(PublishingChannel):
    """A channel of the atomic transport; see the package for its guarantees."""

    QoS = QoS
    Message = Message

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._take: Take | None = None
        self._take_prefix = held_tag(str(next(_channel_numbers)))
        self._unsorted = False
        self._sort_at = self._alive_at = self._gather_until = 0.0
        self._take_count = 0
        self._wait_ms = 0
        self._consumer_callbacks: dict[str, tuple[Any, bool]] = {}
        super().__init__(*args, **kwargs)

    # ── Taking ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any) -> None:
        """Consume a queue, and keep its callback."""
        self._consumer_callbacks[queue] = callback, no_ack
        self._wait_ms = 0
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Message | None:
        """Take one message, if there is one."""
        take = self._new_take([queue], 1)
        for message in self._unpack(take, self.run(TAKE, *self._take_arguments(take))):
            self._hold(message, no_ack)
            return message
        return None

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Send a take, after the waiting settlements, or after a wait for a wake-up if the last take was empty."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        most = self._room()
        if not queues or not most or self._is_gathering():
            return
        self._gather_until = time.monotonic() + _GATHER_S
        settlements = self._next_settlements()
        commands: list[tuple[Any, ...]] = []
        if settlements:
            commands.append(self._evalsha(SETTLE, self._notes, self._flatten(settlements)))
        elif self._wait_ms:
            wakes = [self.global_keyprefix + WAKE_KEY.format(queue) for queue in queues]
            commands.append(("BRPOP", *wakes, f"{self._wait_ms / 1000:.3f}"))
        waits = bool(commands and not settlements)
        self._take = take = self._new_take(queues, most, len(commands), waits, settlements)
        commands.append(self._evalsha(TAKE, *self._take_arguments(take)))
        self._in_poll = link = self.client.connection
        self._brpop_sent_at = time.monotonic()
        link.send_packed_command(link.pack_commands(commands))

    def _brpop_read(self, **_: Any) -> Any:
        """Read a take's replies and deliver its messages.

        Raises:
            Empty: there were none.
            redis.ConnectionError: Redis refused, or the connection broke; Celery reconnects.
        """
        link, take = self.client.connection, self._take
        if take is None:
            raise Empty
        replies = [read_reply(link) for _ in range(take.ahead + 1)]
        self._in_poll = self._take = None
        self._flush_brpop_reauth()
        errors = [reply for reply in replies if isinstance(reply, ResponseError)]
        if errors:
            self._note_lost(take)
            if not all(isinstance(error, NoScriptError) for error in errors):
                link.disconnect()
                raise as_connection_error(errors[0]) from errors[0]
            self._load_scripts()
            raise Empty
        messages = self._unpack(take, replies[-1])
        if not self._deliver_all(messages):
            raise Empty
        return True

    def _new_take(
        self,
        queues: Sequence[str],
        most: int,
        ahead: int = 0,
        waits: bool = False,
        settlements: Sequence[Settlement] = (),
    ) -> Take:
        self._take_count += 1
        return Take(f"{self._take_prefix}:{self._take_count}", list(queues), most, ahead, waits, settlements)

    def _take_arguments(self, take: Take) -> tuple[list[str], list[Any]]:
        keys = list(self._notes)
        for queue in take.queues:
            keys += [PARKED_KEY.format(queue), WAKE_KEY.format(queue)]
        keys += [self._q_for_pri(queue, priority) for priority in self.priority_steps for queue in take.queues]
        # With a strict order of queues, one queue may fill the take.
        row = take.most if isinstance(self._queue_cycle, priority_cycle) else 1
        about = [part for queue in take.queues for part in (queue, end_of_entry(queue), self._kind_of(queue))]
        room, held_s = max(take.most, self._room(bound=False)), 2 * self.visibility_timeout
        numbers = [take.most, room, row, len(take.queues), BATCH, held_s, self.qos.prefetch_count or _MOST_AT_ONCE]
        return keys, [self.prefixed(""), take.id, *numbers, *about, *self.priority_steps]

    def _room(self, *, bound: bool = True) -> int:
        """Return how many more messages the prefetch limit allows, limited to one take if `bound`."""
        room = self.qos.can_consume_max_estimate()
        return _MOST_AT_ONCE if room is None else min(room, _MOST_AT_ONCE) if bound else room

    def _is_gathering(self) -> bool:
        """Return whether to wait until there is room for more than a few messages."""
        most = self.qos.prefetch_count or 0
        return self._room(bound=False) < most // 4 and time.monotonic() < self._gather_until

    def _unpack(self, take: Take, reply: list[Any]) -> list[Message]:
        """Make the messages of a take's reply, and park those that are not due."""
        wall, next_due_ms, found = float(reply[0]), int(reply[1]), reply[3:]
        self._unsorted = int(reply[2]) > 0
        messages = []
        taken = zip(found[::3], found[1::3], found[2::3], strict=True)
        for number, (queue_number, lane, raw) in enumerate(taken, start=1):
            tag, queue = f"{take.id}:{number}", take.queues[int(queue_number) - 1]
            try:
                payload = read_message(raw)
                eta = due_at(payload)
                payload = without_eta(payload)
                if "content-encoding" not in payload:
                    restore(payload, queue)
                payload["properties"]["delivery_tag"] = tag
                if lane:
                    payload["headers"][TAKEN_FROM_HEADER] = bytes_to_str(lane)
                message = self.Message(payload, channel=self)
            except Exception as error:  # noqa: BLE001 - one bad message must not affect the others
                logger.warning("a message of queue %s cannot be read: %r", queue, error)
                payload, eta, message = {}, None, self.Message.unreadable(raw, tag, self, error)
            if eta is not None and eta > wall and not lane:
                priority = self.priority(self._get_message_priority(payload))
                parked = self.global_keyprefix + PARKED_KEY.format(queue)
                self.settle(Settlement(tag, "park", repr(eta - wall), parked, f"{priority}:{dumps(payload)}"))
                continue
            message.queue = queue
            messages.append(message)
        if found:
            # The queue that was served least recently comes first next time.
            for queue_number in reversed(dict.fromkeys(reversed(found[::3]))):
                self._queue_cycle.rotate(take.queues[int(queue_number) - 1])
        self._choose_wait(len(messages) == take.most, next_due_ms)
        return messages

    def _choose_wait(self, is_full: bool, next_due_ms: int) -> None:
        """Set the wait before the next take: none while there are more messages, else until the next one is due."""
        self._wait_ms = 0 if is_full else _WAIT_MS if next_due_ms < 0 else min(next_due_ms, _WAIT_MS)

    def decode_body(self, body: Any, encoding: Any = None) -> Any:
        """Decode as kombu does; raise ValueError for an unknown encoding."""
        if encoding and encoding not in self.codecs and str(encoding).lower() != "utf-8":
            raise ValueError("its body_encoding is not known")
        return super().decode_body(body, encoding)

    def _hold(self, message: Message, no_ack: bool) -> None:
        self.qos.append(message, message.delivery_tag)
        if no_ack:
            self.qos.ack(message.delivery_tag)

    def _deliver_all(self, messages: Sequence[Message]) -> bool:
        """Deliver messages, and requeue those without a consumer; return whether any was delivered."""
        # All are held before the first is delivered: if delivering fails or ends the worker, the others are requeued.
        for message in messages:
            _, no_ack = self._consumer_callbacks.get(message.queue, (None, False))
            self._hold(message, no_ack)
        is_delivered = False
        for message in messages:
            if self._closing or message.queue not in self._active_queues:
                self.qos.reject(message.delivery_tag, requeue=True)
                continue
            callback, _ = self._consumer_callbacks[message.queue]
            callback(message)
            is_delivered = True
        return is_delivered

    # ── Maintenance and closing ─────────────────────────────────────────────────────────────────────────────────────
    def look_after(self) -> None:
        """Do what is due besides taking: overdue messages, lost takes, unsorted messages, the report of threads."""
        if not self.active_queues:
            return
        self.qos.restore_visible()
        self._give_back_lost_takes()
        queues = [queue for queue in self.active_queues if self._has_lanes(queue)]
        if not queues:
            return
        present = time.monotonic()
        if present >= self._alive_at and self._say_alive(self.qos.prefetch_count or _MOST_AT_ONCE):
            self.restore_overdue()
        if self._unsorted or present >= self._sort_at:
            self._sort_at = present + _SORT_EVERY_S
            self._unsorted = sort(self, queues, self._take_prefix)

    def is_about_to_take(self) -> bool:
        """Return whether a take follows soon and can carry the outbox's settlements."""
        is_waiting = self._take is not None and self._take.waits
        return bool(self.active_queues) and not is_waiting and self.qos.can_consume()

    def close(self) -> None:
        """Close, and requeue the messages that this channel holds."""
        if self.closed:
            return
        self._closing = True
        try:
            if self._in_poll:
                self._brpop_read()
        except (Empty, *self.connection_errors):
            pass
        try:
            if self._qos is not None:
                self._qos.restore_unacked_once()
            self.flush()
            if self._alive_at:
                self._say_alive(0)
        except (ResponseError, *self.connection_errors) as error:
            logger.warning("messages in hand come back after the visibility timeout: %s", error)
        super().close()

    def abandon(self) -> None:
        """Close a channel whose connection is broken. Redis keeps the messages that it holds."""
        if self.closed:
            return
        self._closing = True
        self.do_restore = False
        self.connection.cycle.discard(self)
        self._disconnect_pools()
        self._close_clients()
        virtual.Channel.close(self)

    def _on_connection_disconnect(self, connection: Any) -> None:
        if self._in_poll is connection and self._take is not None:
            self._note_lost(self._take)
            self._take = None
        super()._on_connection_disconnect(connection)

    def _purge(self, queue: str) -> int:
        """Empty a queue, its lanes and its parked messages."""
        client, parked = self._script_client, self.global_keyprefix + PARKED_KEY.format(queue)
        count = client.zcard(parked)
        client.delete(parked)
        return super()._purge(queue) + count + self._count_in_lanes(queue, empties=True)

    def _delete(self, queue: str, exchange: str, routing_key: str, pattern: str, *args: Any, **kwargs: Any) -> None:
        """Delete a queue, its lanes and its parked messages."""
        super()._delete(queue, exchange, routing_key, pattern, *args, **kwargs)
        self._script_client.delete(self.global_keyprefix + PARKED_KEY.format(queue))
        self._count_in_lanes(queue, empties=True)

    def _say_alive(self, threads: int) -> bool:
        """Report this worker's number of threads; return whether any process's lease has lapsed."""
        self._alive_at = time.monotonic() + _ALIVE_EVERY_S
        return int(self.run(ALIVE, [], [self.prefixed(""), self._take_prefix, threads])) > 0

    def renew_lease(self) -> None:
        """Renew the lease on what this process holds."""
        self.run(LEASE, [], [self.prefixed(""), process_token(), 1])

    def end_lease(self) -> None:
        """End this process's lease, as it holds nothing any more."""
        self.run(LEASE, [], [self.prefixed(""), process_token(), 0])
