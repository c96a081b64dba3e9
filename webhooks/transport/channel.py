"""kombu's channel, its acks and its poller, each with the parts that `webhooks.transport` promises otherwise."""

import itertools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from queue import Empty
from typing import Any, cast

import redis
from kombu.messaging import Producer
from kombu.transport import redis as plain
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.imports import symbol_by_name
from kombu.utils.json import dumps, loads
from kombu.utils.scheduling import priority_cycle
from redis.exceptions import NoScriptError, ResponseError

from webhooks.errors import BrokerTooOld
from webhooks.transport.headers import LANE_HEADER, OTHERS
from webhooks.transport.holder import process_token
from webhooks.transport.lanes import FIRST_HEADER, RATE_HEADER, TAKEN_FROM_HEADER, Lanes, whole_of
from webhooks.transport.messages import (
    Admission,
    LaneState,
    Message,
    Outbox,
    Settlement,
    Take,
    Turn,
    due_at,
    end_of_entry,
    mark_redelivered,
    read_message,
    split_entry,
    take_out,
    without_eta,
)
from webhooks.transport.scripts import (
    ADMIT,
    ALIVE,
    COUNT,
    LEASE,
    LOOK,
    OVERDUE,
    PARKED_KEY,
    PUT,
    RESTORING_KEY,
    SERIALIZE,
    SETTLE,
    SHAS,
    TAKE,
    WAKE_KEY,
)
from webhooks.transport.sorter import sort

logger = logging.getLogger(__name__)

#: Messages of one take: bounds the reply that a worker holds in memory.
_MOST_AT_ONCE = 100
#: Parked messages of one queue that one take moves, and settlements of one script: bounds how long Redis is busy.
_BATCH = 500
#: Milliseconds that an idle worker waits between two looks, at most, by the request; a Redis with nothing else to do
#: notices only when something comes or its tenth of a second is over. So a plain producer's message, which wakes nobody
#: else, mostly is what wakes it; if it comes earlier than this, it is found at the next tick. Ours wakes a worker at
#: once. Measured: with 50 half of a plain producer's messages to an idle worker waited for the tick.
_WAIT_MS = 10
#: Seconds between two takes of a worker that has its hands full, at least: so a take has many messages, and all that is
#: done for many at a time costs less for each.
_GATHER_S = 0.025
#: Seconds between two turns of the event loop, at most: acks come from other threads, which cannot wake it.
_TURN_S = 0.01
#: Seconds between two looks for overdue messages, at least; otherwise a tenth of the visibility timeout.
_RESTORE_EVERY_S = 1.0
#: Seconds between two times that a worker says that it is there, and how many threads it has.
_ALIVE_EVERY_S = 1.0
#: Seconds between two looks for messages that are in no lane yet, where no take comes to tell of them.
_SORT_EVERY_S = 0.1
#: Major version of the first Redis that knows the flags of a script.
_OLDEST_REDIS = 7
#: In ``broker_transport_options``: a `Lanes`.
LANES_OPTION = "webhooks_lanes"
#: The name of a lane: no more than this, and nothing that would end it in a key.
_LANE = re.compile(r"[\w.-]+(?:/[\w.-]+)*", re.ASCII)
_MAX_LANE = 200
#: Milliseconds for which one worker's look for overdue messages keeps the others from theirs.
_RESTORING_MS = 900

#: Numbers the channels of this process.
_channel_numbers = itertools.count(1)
#: By broker: all channels of this process to one Redis share one.
_outboxes: dict[object, Outbox] = {}


def report(
    queue: str, lane: str, *, ms: float | None, is_good: bool | None, rate: tuple[float, int] | None = None
) -> None:
    """Tell of an attempt, with the next settlements: what its endpoint may have at one time follows from it.

    Args:
        queue: of the attempt's message.
        lane: of it.
        ms: milliseconds that the attempt took; None: that says nothing.
        is_good: False has the lane's share halved; None: the endpoint is not to blame, nor to praise.
        rate: the lane's limit, attempts per second and burst; None for none.
    """
    verdict = "" if is_good is None else "good" if is_good else "bad"
    limit = f"{rate[0]} {rate[1]}" if rate else ""
    _tell(Settlement(lane, "report", "" if ms is None else f"{ms:.3f}", verdict, limit, queue))


def hold_lane(queue: str, lane: str, seconds: float) -> None:
    """Have a lane give out nothing for so long; told with the next settlements. A later call counts instead."""
    _tell(Settlement(lane, "hold", f"{seconds:.3f}", "", "", queue))


def finish(queue: str, lane: str, tag: str) -> None:
    """Tell of the end of an attempt that `Channel.admit` let go; told with the next settlements."""
    for outbox in list(_outboxes.values()):
        outbox.settlements.append(Settlement(_held_tag(tag), "done", "", lane, "", queue))


def _held_tag(tag: str) -> str:
    """Return a tag that says which process holds what it stands for: `lua/parts/leases.lua` reads it."""
    return f"{process_token()}/{tag}"


def _tell(settlement: Settlement) -> None:
    for outbox in list(_outboxes.values()):  # a worker has one broker
        outbox.reports.append(settlement)


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


class Poller(plain.MultiChannelPoller):
    """Waits for several channels, within Celery's event loop or without one."""

    #: Celery's event loop; None where there is none, as with the gevent pool.
    loop: Any = None
    #: The thread that polls.
    thread_id: int | None = None
    _turns: Any = None

    def turn_with(self, loop: Any) -> None:
        """Take part in Celery's event loop."""
        self.loop = loop
        if self._turns is not None:  # of the connection before
            self._turns.cancel()
        self._turns = loop.call_repeatedly(_TURN_S, _nothing)

    def on_poll_start(self) -> None:
        """Do what is due before waiting. Comes before each wait in both modes; kombu's timers come in one alone."""
        self.thread_id = threading.get_ident()
        channels = tuple(self._channels)
        try:
            for channel in channels:
                channel.look_after()
            if channels and not any(channel.is_about_to_take() for channel in channels):
                channels[0].flush()  # they share one outbox
        except ResponseError as error:
            raise _as_connection_error(error) from error
        super().on_poll_start()


class Channel(plain.Channel):
    """One channel; see the module for what it promises."""

    QoS = QoS
    Message = Message

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._take: Take | None = None
        self._take_prefix = _held_tag(str(next(_channel_numbers)))
        self._unsorted = False
        self._sort_at = self._alive_at = self._gather_until = 0.0
        self._take_count = 0
        self._wait_ms = 0
        self._consumer_callbacks: dict[str, tuple[Any, bool]] = {}
        self._kept: tuple[Any, Any] = (None, None)
        self._kept_plain: tuple[Any, Any] = (None, None)
        try:
            super().__init__(*args, **kwargs)
        except redis.AuthenticationError as error:
            # The same type: Celery goes on trying, as the password may be changed meanwhile.
            raise type(error)(f"{error}; check user and password in WEBHOOKS_BROKER_URL") from error
        except ResponseError as error:
            self._refuse_old_redis(error)
            raise
        client = self.connection.client
        broker = (client.hostname, client.port, client.virtual_host, self.global_keyprefix, self.unacked_key)
        self.outbox = _outboxes.setdefault(broker, Outbox())
        lanes: Lanes | None = client.transport_options.get(LANES_OPTION)
        self._lanes: Mapping[str, bool] = lanes["queues"] if lanes else {}
        self._lane_of = cast("Callable[[object], str]", symbol_by_name(lanes["lane_of"]) if lanes else _no_lane)

    # ── Publishing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Queue a message, or park it until its ETA.

        One of a batch, or to a queue that expires, goes the plain way; whoever takes it parks it.
        """
        if kwargs.get("_publish_batch") is not None or queue in getattr(
            self, "_expires", ()
        ):  # older kombu has no queues that expire
            super()._put(queue, message, **kwargs)
            return
        self.run(PUT, *self._put_arguments(queue, [message], self.priority(self._get_message_priority(message))))

    def put_all(
        self,
        queue: str,
        messages: Sequence[dict[str, Any]],
        write: Callable[[dict[str, Any]], str | bytes] = dumps,
    ) -> Callable[[], object]:
        """Queue messages in one step, in their order, or park those with an ETA until then.

        Args:
            queue: where, by its name.
            messages: as `prepare_message` makes them, of the first priority; some hundreds at most, as Redis serves
                nobody else meanwhile.
            write: makes JSON of one; kombu's own knows types that JSON does not have.

        Returns:
            What waits until they are queued, and is to be called once; until then something else can be done.
        """
        return self.begin(PUT, *self._put_arguments(queue, messages, 0, write))

    def make_message(self, producer: Producer, body: object, options: dict[str, Any]) -> dict[str, Any]:
        """Make the message that kombu would put into a queue, for `put_all`.

        Args:
            producer: one of this channel.
            body: as for `kombu.Producer.publish`, to the anonymous exchange.
            options: likewise.
        """
        options = dict(options)
        headers = options.pop("headers")
        body, content_type, content_encoding = producer._prepare(
            body, options.pop("serializer"), None, None, options.pop("compression"), headers
        )
        exchange, routing_key = options.pop("exchange"), options.pop("routing_key")
        for name in ("retry", "retry_policy", "declare", "timeout", "confirm_timeout"):
            options.pop(name)
        priority = options.pop("priority", None)
        message = self.prepare_message(body, priority, content_type, content_encoding, headers, options)
        self._inplace_augment_message(message, exchange, routing_key)
        return message

    def _put_arguments(
        self,
        queue: str,
        messages: Sequence[dict[str, Any]],
        priority: int,
        write: Callable[[dict[str, Any]], str | bytes] = dumps,
    ) -> tuple[list[str], list[Any]]:
        keys = [self._q_for_pri(queue, priority), PARKED_KEY.format(queue), WAKE_KEY.format(queue)]
        arguments: list[Any] = [self.prefixed(""), queue, priority]
        has_lanes = self._has_lanes(queue)
        for message in messages:
            eta = due_at(message)
            delay_s = "" if eta is None or eta <= time.time() else repr(eta - time.time())
            lane = self.lane_of(message) if has_lanes else ""
            stored, is_first = _without_first(without_eta(message))
            arguments += [write(stored), delay_s, lane, whole_of(lane), *_rate_of(message), int(is_first)]
        return keys, arguments

    # ── Taking ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any) -> None:
        """Consume a queue, and remember whom to give its messages."""
        self._consumer_callbacks[queue] = callback, no_ack
        self._wait_ms = 0
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Message | None:
        """Take one message; None where there is none."""
        take = self._new_take([queue], 1)
        for message in self._unpack(take, self.run(TAKE, *self._take_arguments(take))):
            self._hold(message, no_ack)
            return message
        return None

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Send a take, with the settlements that wait; or, where nothing was found before, wait for a wake-up first."""
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
            redis.ConnectionError: Redis refused, or the connection broke; Celery connects anew.
        """
        link, take = self.client.connection, self._take
        if take is None:
            raise Empty
        replies = [_read(link) for _ in range(take.ahead + 1)]
        self._in_poll = self._take = None
        self._flush_brpop_reauth()
        errors = [reply for reply in replies if isinstance(reply, ResponseError)]
        if errors:
            self._note_lost(take)
            if not all(isinstance(error, NoScriptError) for error in errors):
                link.disconnect()
                raise _as_connection_error(errors[0]) from errors[0]
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
        # As many in a row as there are, where the user's strategy wants one queue before the other.
        row = take.most if isinstance(self._queue_cycle, priority_cycle) else 1
        about = [part for queue in take.queues for part in (queue, end_of_entry(queue), self._kind_of(queue))]
        room, held_s = max(take.most, self._room(bound=False)), 2 * self.visibility_timeout
        numbers = [take.most, room, row, len(take.queues), _BATCH, held_s]
        return keys, [self.prefixed(""), take.id, *numbers, *about, *self.priority_steps]

    def _room(self, *, bound: bool = True) -> int:
        """Say how many messages may be taken now; as one take bounds it, or as it is."""
        room = self.qos.can_consume_max_estimate()
        return _MOST_AT_ONCE if room is None else min(room, _MOST_AT_ONCE) if bound else room

    def _is_gathering(self) -> bool:
        """Say whether to wait until there is room for more than a few messages."""
        most = self.qos.prefetch_count or 0
        return self._room(bound=False) < most // 4 and time.monotonic() < self._gather_until

    def _unpack(self, take: Take, reply: list[Any]) -> list[Message]:
        """Make messages of a take's reply, and park those that are not due."""
        now, next_due_ms, found = float(reply[0]), int(reply[1]), reply[3:]
        self._unsorted = int(reply[2]) > 0
        messages = []
        taken = zip(found[::3], found[1::3], found[2::3], strict=True)
        for number, (queue_number, lane, raw) in enumerate(taken, start=1):
            tag, queue = f"{take.id}:{number}", take.queues[int(queue_number) - 1]
            try:
                payload = read_message(raw)
                eta = due_at(payload)
                payload = without_eta(payload)
                payload["properties"]["delivery_tag"] = tag
                if lane:
                    payload["headers"][TAKEN_FROM_HEADER] = bytes_to_str(lane)
                message = self.Message(payload, channel=self)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next message may be good
                logger.warning("a message of queue %s cannot be read: %r", queue, error)
                payload, eta, message = {}, None, self.Message.unreadable(raw, tag, self, error)
            if eta is not None and eta > now and not lane:
                priority = self.priority(self._get_message_priority(payload))
                parked = self.global_keyprefix + PARKED_KEY.format(queue)
                self.settle(Settlement(tag, "park", repr(eta), parked, f"{priority}:{dumps(payload)}"))
                continue
            message.queue = queue
            messages.append(message)
        if found:
            # The one served longest ago comes first next time.
            for queue_number in reversed(dict.fromkeys(reversed(found[::3]))):
                self._queue_cycle.rotate(take.queues[int(queue_number) - 1])
        self._choose_wait(len(messages) == take.most, next_due_ms)
        return messages

    def _choose_wait(self, is_full: bool, next_due_ms: int) -> None:
        """Look again at once while there is more; else when something is due, or after a while if nothing wakes us."""
        self._wait_ms = 0 if is_full else _WAIT_MS if next_due_ms < 0 else min(next_due_ms, _WAIT_MS)

    def decode_body(self, body: Any, encoding: Any = None) -> Any:
        """Decode as kombu does, but name what is wrong.

        Raises:
            ValueError: nobody knows the encoding.
        """
        if encoding and encoding not in self.codecs and str(encoding).lower() != "utf-8":
            raise ValueError("its body_encoding is not known")
        return super().decode_body(body, encoding)

    def _hold(self, message: Message, no_ack: bool) -> None:
        self.qos.append(message, message.delivery_tag)
        if no_ack:
            self.qos.ack(message.delivery_tag)

    def _deliver_all(self, messages: Sequence[Message]) -> bool:
        """Give messages to their consumers; those whose consumer is gone go back. False when nobody got one."""
        # All are held before the first is delivered: if that ends in an error, or ends the worker, the others go back.
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

    # ── Lanes ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _has_lanes(self, queue: str) -> bool:
        return queue in self._lanes

    def _kind_of(self, queue: str) -> str:
        if queue not in self._lanes:
            return ""
        return "bounded" if self._lanes[queue] else "lanes"

    def lane_of(self, message: dict[str, Any]) -> str:
        """Say which lane a message belongs to: by its header, else as the user's options say."""
        lane = (message.get("headers") or {}).get(LANE_HEADER)
        if not isinstance(lane, str):
            lane = self._lane_of(message)
        return lane if isinstance(lane, str) and len(lane) <= _MAX_LANE and _LANE.fullmatch(lane) else OTHERS

    def list_of(self, queue: str, priority: int) -> str:
        """Name the list of a queue for a priority."""
        return self._q_for_pri(queue, priority)

    def prefixed(self, key: str) -> str:
        """Put the user's prefix before a key."""
        return self.global_keyprefix + key

    def serialize(self, whole: str, *, is_serial: bool = True) -> None:
        """Have all lanes that are parts of something be one serial lane from now on, or not any more."""
        if self._lanes:
            self.run(SERIALIZE, [], [self.prefixed(""), whole, int(is_serial), *self._lanes])

    def admit(self, queue: str, attempts: Sequence[Admission], in_hand: int) -> Callable[[], list[Turn]]:
        """Ask which attempts may be made at once, without a message of their own, by the rules of their lanes.

        Those that may count as in hand until `finish` tells of their end, or this process's lease has lapsed; without
        a lease for twice the visibility timeout.

        Args:
            queue: in which the others will wait.
            attempts: in the order in which they are wanted.
            in_hand: messages that this worker has taken for them: so many of its threads are kept for them.

        Returns:
            What returns the answers. Until it is called Redis is at it, and something else can be done.
        """
        held_s = 2 * self.visibility_timeout
        arguments: list[Any] = [self.prefixed(""), queue, in_hand, held_s]
        for attempt in attempts:
            arguments += [_held_tag(attempt.tag), attempt.lane, *(attempt.rate or ("", ""))]
        wait = self.begin(ADMIT, [self.unacked_key], arguments)

        def read() -> list[Turn]:
            try:
                return [Turn(reply) for reply in wait()]
            except BaseException:
                # Redis may have let them go: nobody makes them, so nobody would tell of their end.
                for attempt in attempts:
                    finish(queue, attempt.lane, attempt.tag)
                raise

        return read

    def look_at(self, queue: str, lanes: Sequence[str]) -> list[LaneState]:
        """Say how it stands with lanes of a queue, in their order."""
        found = self.run(LOOK, [], [self.prefixed(""), queue, *lanes])
        rows = zip(found[::4], found[1::4], found[2::4], found[3::4], strict=True)
        return [LaneState(int(row[0]), int(row[1]), int(row[2]), float(row[3]) if row[3] else None) for row in rows]

    def _count_in_lanes(self, queue: str, *, empties: bool = False) -> int:
        return int(self.run(COUNT, [], [self.prefixed(""), queue, int(empties)])) if self._has_lanes(queue) else 0

    def _size(self, queue: str) -> Any:
        """Count what waits in a queue, in lanes as well."""
        return cast("int", super()._size(queue)) + self._count_in_lanes(queue)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        """Say whether there is anything in a queue: Redis knows no empty ones."""
        return super()._has_queue(queue, **kwargs) or self._count_in_lanes(queue) > 0

    def _say_alive(self, threads: int) -> bool:
        """Say how many threads this worker has; return whether a process is dead that held something."""
        self._alive_at = time.monotonic() + _ALIVE_EVERY_S
        return int(self.run(ALIVE, [], [self.prefixed(""), self._take_prefix, threads])) > 0

    def renew_lease(self) -> None:
        """Say that this process lives: what it holds stays its own for a while."""
        self.run(LEASE, [], [self.prefixed(""), process_token(), 1])

    def end_lease(self) -> None:
        """Say that this process holds nothing any more."""
        self.run(LEASE, [], [self.prefixed(""), process_token(), 0])

    # ── Settling ────────────────────────────────────────────────────────────────────────────────────────────────────
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
            poller.loop.call_soon(_nothing)  # a turn of the loop, which looks after this channel

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
        reports = take_out(self.outbox.reports, _BATCH)
        return reports + take_out(self.outbox.settlements, _BATCH - len(reports))

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
    def line_up_forgotten(self) -> None:
        """Line up the lanes that Redis forgot, if it evicts keys."""
        for queue in self.active_queues:
            self._count_in_lanes(queue)

    def restore_overdue(self) -> None:
        """Give back what a process whose lease has lapsed holds, and what was taken longer ago than visibility timeout.

        Not while another worker is just doing it.
        """
        keys, pause_ms = [*self._notes, RESTORING_KEY], _RESTORING_MS
        while True:
            asked = [self.prefixed(""), self.visibility_timeout, pause_ms, _BATCH, process_token()]
            _, *found = self.run(OVERDUE, keys, asked)
            entries = list(zip(found[::3], found[1::3], found[2::3], strict=True))
            for tag, score, entry in reversed(entries):  # the oldest is to be taken first
                self._give_back_entry(bytes_to_str(tag), entry, "stale", bytes_to_str(score))
            self.flush()
            if len(entries) < _BATCH:
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

    # ── Life of a channel ───────────────────────────────────────────────────────────────────────────────────────────
    def look_after(self) -> None:
        """Do what is due besides taking: overdue messages, and takes whose reply was lost."""
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
        """Say whether a take comes soon, and can carry what waits in the outbox."""
        is_waiting = self._take is not None and self._take.waits
        return bool(self.active_queues) and not is_waiting and self.qos.can_consume()

    def close(self) -> None:
        """Close in order: give back what is in hand."""
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
        """Close without a word to Redis, as the connection is broken. What is in hand stays noted there."""
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
        """Empty a queue, of what is parked as well."""
        client, parked = self._script_client, self.global_keyprefix + PARKED_KEY.format(queue)
        count = client.zcard(parked)
        client.delete(parked)
        return super()._purge(queue) + count + self._count_in_lanes(queue, empties=True)

    def _delete(self, queue: str, exchange: str, routing_key: str, pattern: str, *args: Any, **kwargs: Any) -> None:
        """Delete a queue, with what is parked."""
        super()._delete(queue, exchange, routing_key, pattern, *args, **kwargs)
        self._script_client.delete(self.global_keyprefix + PARKED_KEY.format(queue))
        self._count_in_lanes(queue, empties=True)

    # ── Talking to Redis ────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def _notes(self) -> list[str]:
        return [self.unacked_key, self.unacked_index_key]

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Give the client of kombu's own commands: one for a pool's life, where kombu makes one per command."""
        if asynchronous:
            return super()._create_client(asynchronous=True)
        pool, client = self._kept
        if pool is not self.pool:
            client = super()._create_client()
            self._kept = self.pool, client
        return client

    @property
    def _script_client(self) -> Any:
        """A client that leaves keys as they are: kombu's prefixes a script's first key and no other."""
        pool, client = self._kept_plain
        if pool is not self.pool:
            client = redis.Redis(connection_pool=self.pool)
            self._kept_plain = self.pool, client
        return client

    def _evalsha(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> tuple[Any, ...]:
        return "EVALSHA", SHAS[script], len(keys), *(self.global_keyprefix + key for key in keys), *arguments

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a script, now; keys get the user's prefix."""
        command = self._evalsha(script, keys, arguments)
        try:
            return self._script_client.execute_command(*command)
        except NoScriptError:
            self._load_scripts()
            return self._script_client.execute_command(*command)

    def begin(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Callable[[], Any]:
        """Send a script; return what waits for its reply, and is to be called once."""
        pool, command = self.pool, self._evalsha(script, keys, arguments)
        link = _get_connection(pool)
        try:
            link.send_command(*command)
        except BaseException:
            _drop(pool, link)
            raise

        def wait() -> Any:
            try:
                reply = _read(link)
            except BaseException:
                _drop(pool, link)
                raise
            pool.release(link)
            if isinstance(reply, NoScriptError):
                return self.run(script, keys, arguments)
            if isinstance(reply, ResponseError):
                raise reply
            return reply

        return wait

    def _load_scripts(self) -> None:
        try:
            for script in SHAS:
                self._script_client.script_load(script)
        except ResponseError as error:  # the line with which they begin is one of Redis 7.0
            self._refuse_old_redis(error)
            raise

    def _refuse_old_redis(self, error: ResponseError) -> None:
        """Find out whether an error is for want of a newer Redis.

        Raises:
            BrokerTooOld: it is.
        """
        try:
            # Redis 5 does not know the protocol that the driver begins with.
            with redis.Redis(connection_pool=redis.ConnectionPool(**{**self._connparams(), "protocol": 2})) as client:
                facts = cast("dict[str, Any]", client.info("server"))
        except redis.RedisError:  # INFO is among what an ACL with -@dangerous refuses
            return
        version = str(facts.get("redis_version", ""))
        major = version.partition(".")[0]
        if major.isdigit() and int(major) < _OLDEST_REDIS and "valkey_version" not in facts:
            raise BrokerTooOld(
                f"Redis {version} at WEBHOOKS_BROKER_URL is too old: use Redis {_OLDEST_REDIS}.0 or later, or Valkey, "
                "or set WEBHOOKS_ATOMIC_TRANSPORT=false"
            ) from error


def _read(link: Any) -> Any:
    """Read one reply; an error that Redis replied is returned, as the replies behind it must be read, too."""
    try:
        return link.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


def _get_connection(pool: Any) -> Any:
    try:
        return pool.get_connection()
    except TypeError:  # redis before 5.3 wants to be told a command, of which later ones warn
        return pool.get_connection("EVALSHA")


def _drop(pool: Any, link: Any) -> None:
    """Give back a connection on which a reply may still come."""
    link.disconnect()
    pool.release(link)


def _as_connection_error(error: ResponseError) -> redis.ConnectionError:
    """Make of Redis's refusal, such as that of a master that became a replica, what Celery tries again without end."""
    return redis.ConnectionError(f"Redis refuses: {error}")


def _rate_of(message: dict[str, Any]) -> tuple[float | str, float | str]:
    """Read the limit that a message's lane has: attempts per second, burst; or two empty ones."""
    limit = (message.get("headers") or {}).get(RATE_HEADER)
    if isinstance(limit, list | tuple) and len(limit) == 2 and all(isinstance(n, int | float) and n > 0 for n in limit):
        return limit[0], limit[1]
    return "", ""


def _without_first(message: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return a message as it is stored, and whether it comes first in its lane."""
    headers = message.get("headers") or {}
    if FIRST_HEADER not in headers:
        return message, False
    kept = {name: value for name, value in headers.items() if name != FIRST_HEADER}
    return {**message, "headers": kept}, headers[FIRST_HEADER] is True


def _nothing() -> None:
    pass


def _no_lane(message: object) -> str:
    return OTHERS
