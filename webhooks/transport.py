"""kombu's Redis transport, made atomic: a worker killed at any instant loses no message, and waiting costs it nothing.

Owns how messages move inside Redis between producers and workers. Never looks into a message's body. `app` hands its
``AMQP`` to Celery, and ``broker_transport_options`` choose it (``OPTION``); the broker's URL stays ``redis://…``.

What is promised, and how:

* **Taking** is one script (``TAKE``): it pops messages off the queues' lists and notes them in ``unacked`` and
  ``unacked_index``, as many as the prefetch allows. So a message is always in exactly one place of Redis. Queues take
  turns; among priorities the order is strict, as in kombu.
* **Acks** are collected, and travel with the next take, or alone when there is none to come (``SETTLE``). Each hold of
  a message has a tag of its own, made when it is taken: an ack that comes late cannot touch the hold of another
  worker, and an ack whose connection is gone is sent over the next one.
* **A message with an ETA** waits in a sorted set, scored by when it is due on Redis's clock, from its publishing on or,
  from a plain producer, from when it is first taken. The take that comes after its time moves it to its queue.
* **What a dead worker held** comes back ``visibility_timeout`` later (``OVERDUE``); what a stopping worker held, or a
  task rejected, comes back at once, to be taken next.
* **A lost connection** gives nothing back: the tasks at work finish, and ack over the next connection.
* **What cannot be read** is set aside in the list `UNREADABLE_KEY`; it neither stops a worker nor is lost.
* **A full Redis** (``maxmemory``) refuses publishing alone; taking, acks and the rest go on, so it drains.

Keys: kombu's own lists, ``unacked`` and ``unacked_index`` in kombu's format, so plain producers feed it and a plain
worker takes over (but not what is parked). Besides: ``webhooks.parked.<queue>``, ``webhooks.wake.<queue>`` (a token for
one idle worker, for a second), ``webhooks.restoring`` (one worker at a time looks for overdue messages) and
``webhooks.unreadable``; all behind kombu's ``global_keyprefix``. Needs Redis 7.0 or any Valkey. Not for a cluster, as
kombu's own.
"""

import base64
import json
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha1
from queue import Empty
from typing import Any, NamedTuple, cast

import redis
from celery.app import amqp
from kombu import connection
from kombu.transport import redis as plain
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from kombu.utils.scheduling import priority_cycle
from redis.exceptions import NoScriptError, ResponseError

logger = logging.getLogger(__name__)

#: In ``broker_transport_options``: true chooses this transport where the broker is a Redis.
OPTION = "webhooks_atomic"
#: A list. Each entry is JSON: ``queue``, ``found_at`` (seconds since 1970, Redis's clock) and ``payload_base64``, the
#: bytes as they were found. `LPOP` gives the newest.
UNREADABLE_KEY = "webhooks.unreadable"
PARKED_KEY = "webhooks.parked.{}"
WAKE_KEY = "webhooks.wake.{}"
RESTORING_KEY = "webhooks.restoring"

#: Messages of one take: bounds the reply that a worker holds in memory.
_MOST_AT_ONCE = 100
#: Parked messages of one queue that one take moves, and settlements of one script: bounds how long Redis is busy.
_BATCH = 500
#: Milliseconds that an idle worker waits between two looks, at most. Our own producers wake it at once; this is how
#: late it finds a plain producer's message, or a parked one that has come due.
_LONGEST_WAIT_MS = 50
#: Seconds between two looks for overdue messages, at least; otherwise a tenth of the visibility timeout.
_RESTORE_EVERY_S = 1.0
#: Milliseconds for which one worker's look for overdue messages keeps the others from theirs.
_RESTORING_MS = 900

# ── Scripts ─────────────────────────────────────────────────────────────────────────────────────────────────────────
# "allow-oom": these only move what Redis holds already, and a full Redis must be able to drain. No script decodes a
# message: Lua's JSON would change numbers and empty arrays, so what is stored is what came, byte for byte.

_NOW = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
"""

_WAKE = """
local function wake(key)
  if redis.call('LLEN', key) == 0 then
    redis.call('LPUSH', key, '1')
    redis.call('PEXPIRE', key, 1000)
  end
end
"""

#: KEYS: the list, its queue's parked set, its queue's wake-up. ARGV: message, priority, seconds to wait or "".
PUT = f"""#!lua
{_NOW}{_WAKE}
if ARGV[3] == '' then
  redis.call('LPUSH', KEYS[1], ARGV[1])
  wake(KEYS[3])
else
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[2] .. ':' .. ARGV[1])
end
"""

#: KEYS: unacked, unacked_index, parked set and wake-up of each queue, then the lists: all queues' of the first
#: priority, all of the next. ARGV: id of this take, most messages, messages of one queue in a row, number of queues, a
#: batch, what ends each queue's entry in unacked, then the priorities.
#: Returns the time, milliseconds until the next parked message is due or -1, then a queue's number and a message each.
TAKE = f"""#!lua flags=allow-oom
{_NOW}{_WAKE}
local id, most, row, queues = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local priorities = #ARGV - 5 - queues
local function list(priority, queue) return KEYS[2 + 2 * queues + (priority - 1) * queues + queue] end
local level = {{}}
for p = 1, priorities do level[ARGV[5 + queues + p]] = p end

local next_due = -1
for q = 1, queues do
  local parked = KEYS[1 + 2 * q]
  local due = redis.call('ZRANGEBYSCORE', parked, '-inf', now, 'LIMIT', 0, ARGV[5])
  for _, member in ipairs(due) do
    local colon = string.find(member, ':', 1, true)
    local priority = level[string.sub(member, 1, colon - 1)] or 1
    redis.call('LPUSH', list(priority, q), string.sub(member, colon + 1))
  end
  if #due > 0 then redis.call('ZREM', parked, unpack(due)) end
  local first = redis.call('ZRANGE', parked, 0, 0, 'WITHSCORES')
  if first[2] then
    local wait = math.max(0, math.ceil((tonumber(first[2]) - now) * 1000))
    if next_due < 0 or wait < next_due then next_due = wait end
  end
end

local reply, taken = {{tostring(now), next_due}}, 0
for p = 1, priorities do
  local found = true
  while found and taken < most do
    found = false
    for q = 1, queues do
      for _ = 1, row do
        local message = taken < most and redis.call('RPOP', list(p, q))
        if not message then break end
        found = true
        taken = taken + 1
        local tag = id .. ':' .. taken
        redis.call('HSET', KEYS[1], tag, '[' .. message .. ARGV[5 + q])
        redis.call('ZADD', KEYS[2], now, tag)
        reply[#reply + 1] = q
        reply[#reply + 1] = message
      end
    end
  end
end

if taken == most then
  for q = 1, queues do
    for p = 1, priorities do
      if redis.call('EXISTS', list(p, q)) == 1 then wake(KEYS[2 + 2 * q]) end
    end
  end
end
return reply
"""

#: KEYS: unacked, unacked_index. ARGV, for each message: tag, what to do ("ack", "next", "stale", "also", "park",
#: "aside"), a number, key, value, wake-up. What is to be done besides removing the note is done only by who removed it.
SETTLE = f"""#!lua flags=allow-oom
{_WAKE}
local is_ours = false
for i = 1, #ARGV, 6 do
  local tag, act, number, key, value = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  if act == 'stale' and redis.call('ZSCORE', KEYS[2], tag) ~= number then
    is_ours = false  -- it was overdue with this score a moment ago; now it is another worker's hold
  elseif act ~= 'also' then  -- that one goes with the message before it
    redis.call('ZREM', KEYS[2], tag)
    is_ours = redis.call('HDEL', KEYS[1], tag) == 1
  end
  if is_ours and (act == 'next' or act == 'stale' or act == 'also') then
    redis.call('RPUSH', key, value)
    wake(ARGV[i + 5])
  elseif is_ours and act == 'park' then
    redis.call('ZADD', key, number, value)
  elseif is_ours and act == 'aside' then
    redis.call('LPUSH', key, value)
  end
end
"""

#: KEYS: unacked, unacked_index, restoring. ARGV: visibility timeout in seconds, milliseconds for which no other worker
#: looks, or 0 to go on looking, a batch. Returns the time, then tag, score and entry of each overdue message, the
#: oldest first.
OVERDUE = f"""#!lua flags=allow-oom
{_NOW}
local reply = {{tostring(now)}}
if ARGV[2] ~= '0' and not redis.call('SET', KEYS[3], '1', 'NX', 'PX', ARGV[2]) then return reply end
local before = now - tonumber(ARGV[1])
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', before, 'WITHSCORES', 'LIMIT', 0, ARGV[3])
for i = 1, #found, 2 do
  local entry = redis.call('HGET', KEYS[1], found[i])
  if entry then
    reply[#reply + 1] = found[i]
    reply[#reply + 1] = found[i + 1]
    reply[#reply + 1] = entry
  else
    redis.call('ZREM', KEYS[2], found[i])
  end
end
return reply
"""


def _sha(script: str) -> str:
    return sha1(script.encode(), usedforsecurity=False).hexdigest()


# ── What goes to and fro ────────────────────────────────────────────────────────────────────────────────────────────
class Settlement(NamedTuple):
    """What becomes of one message that was taken: `SETTLE` says what each field is."""

    tag: str
    act: str
    number: str = ""
    key: str = ""
    value: str | bytes = ""
    wake: str = ""


@dataclass(frozen=True, slots=True)
class Take:
    """One `TAKE` on its way, and what travels with it."""

    id: str
    queues: Sequence[str]
    most: int
    #: Replies before the take's own.
    ahead: int = 0
    #: Whether it waits for a wake-up first.
    waits: bool = False
    settlements: Sequence[Settlement] = ()

    @property
    def tags(self) -> list[str]:
        """The tags that its messages can have."""
        return [f"{self.id}:{number}" for number in range(1, self.most + 1)]


@dataclass(frozen=True, slots=True)
class _Outbox:
    """What this process has yet to tell one Redis. It outlives connections, so that nothing of it is lost with one."""

    settlements: deque[Settlement] = field(default_factory=deque)
    #: Takes whose reply never came: Redis may have done them.
    lost_takes: deque[Take] = field(default_factory=deque)


_outboxes: dict[object, _Outbox] = {}


class Message(virtual.Message):
    """A message that knows the queue that it was taken from."""

    queue = ""


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
        """Settle a message that is done. Any thread may; never raises for want of a connection."""
        virtual.QoS.ack(self, delivery_tag)
        self.channel.settle(Settlement(delivery_tag, "ack"))

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a message back, to be taken next, or drop it."""
        message = self._held.get(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)
        if requeue and message is not None:
            self.channel.settle(self.channel.giving_back(delivery_tag, message.queue, message._raw))
        else:
            self.channel.settle(Settlement(delivery_tag, "ack"))

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
        self.channel.restore_overdue()


class Poller(plain.MultiChannelPoller):
    """Waits for several channels, within Celery's event loop or without one."""

    #: Celery's event loop; None where there is none, as with the gevent pool.
    loop: Any = None
    #: The thread that polls.
    thread_id: int | None = None

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
        self._take_prefix = uuid.uuid4().hex
        self._take_count = 0
        self._wait_ms = 0
        self._consumer_callbacks: dict[str, tuple[Any, bool]] = {}
        self._kept: tuple[Any, Any] = (None, None)
        self._kept_plain: tuple[Any, Any] = (None, None)
        super().__init__(*args, **kwargs)
        client = self.connection.client
        broker = (client.hostname, client.port, client.virtual_host, self.global_keyprefix, self.unacked_key)
        self.outbox = _outboxes.setdefault(broker, _Outbox())

    # ── Publishing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Queue a message, or park it until its ETA.

        One of a batch, or to a queue that expires, goes the plain way; whoever takes it parks it.
        """
        if kwargs.get("_publish_batch") is not None or queue in self._expires:
            super()._put(queue, message, **kwargs)
            return
        due_at = _due_at(message)
        delay_s = "" if due_at is None or due_at <= time.time() else repr(due_at - time.time())
        priority = self.priority(self._get_message_priority(message))
        keys = [self._q_for_pri(queue, priority), PARKED_KEY.format(queue), WAKE_KEY.format(queue)]
        self._run(PUT, keys, [dumps(_without_eta(message)), priority, delay_s])

    # ── Taking ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any) -> None:
        """Consume a queue, and remember whom to give its messages."""
        self._consumer_callbacks[queue] = callback, no_ack
        self._wait_ms = 0
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Message | None:
        """Take one message; None where there is none."""
        take = self._new_take([queue], 1)
        for message in self._unpack(take, self._run(TAKE, *self._take_arguments(take))):
            self._hold(message, no_ack)
            return message
        return None

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Send a take, with the settlements that wait; or, where nothing was found before, wait for a wake-up first."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        room = self.qos.can_consume_max_estimate()
        most = _MOST_AT_ONCE if room is None else min(room, _MOST_AT_ONCE)
        if not queues or not most:
            return
        settlements = self._next_settlements()
        commands: list[tuple[Any, ...]] = []
        if settlements:
            commands.append(self._evalsha(SETTLE, self._notes, _flatten(settlements)))
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
        ends = [_end_of_entry(queue) for queue in take.queues]
        return keys, [take.id, take.most, row, len(take.queues), _BATCH, *ends, *self.priority_steps]

    def _unpack(self, take: Take, reply: list[Any]) -> list[Message]:
        """Make messages of a take's reply; park those that are not due, and set aside what is none."""
        now, next_due_ms, found = float(reply[0]), int(reply[1]), reply[2:]
        messages = []
        for number, (queue_number, raw) in enumerate(zip(found[::2], found[1::2], strict=True), start=1):
            tag, queue = f"{take.id}:{number}", take.queues[int(queue_number) - 1]
            try:
                payload = loads(bytes_to_str(raw))
                due_at = _due_at(payload)
                payload = _without_eta(payload)
                payload["properties"]["delivery_tag"] = tag
                message = self.Message(payload, channel=self)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next message may be good
                self._set_aside(tag, queue, raw, now, error)
                continue
            if due_at is not None and due_at > now:
                priority = self.priority(self._get_message_priority(payload))
                parked = self.global_keyprefix + PARKED_KEY.format(queue)
                self.settle(Settlement(tag, "park", repr(due_at), parked, f"{priority}:{dumps(payload)}"))
                continue
            message.queue = queue
            messages.append(message)
        if found:
            # The one served longest ago comes first next time.
            for queue_number in reversed(dict.fromkeys(reversed(found[::2]))):
                self._queue_cycle.rotate(take.queues[int(queue_number) - 1])
        self._choose_wait(len(found) // 2 == take.most, bool(found), next_due_ms)
        return messages

    def _choose_wait(self, is_full: bool, is_fruitful: bool, next_due_ms: int) -> None:
        """Look again at once while there is more, soon while there was something, then less and less often."""
        if is_full or next_due_ms == 0:
            self._wait_ms = 0
            return
        self._wait_ms = 1 if is_fruitful else min(max(1, 2 * self._wait_ms), _LONGEST_WAIT_MS)
        if next_due_ms > 0:
            self._wait_ms = min(self._wait_ms, next_due_ms)

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

    def _set_aside(self, tag: str, queue: str, raw: bytes, now: float, reason: object) -> None:
        logger.warning("set a message of queue %s aside in %s, it cannot be read: %r", queue, UNREADABLE_KEY, reason)
        record = {"queue": queue, "found_at": now, "payload_base64": base64.b64encode(raw).decode()}
        self.settle(Settlement(tag, "aside", "", self.global_keyprefix + UNREADABLE_KEY, json.dumps(record)))

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
                self._run(SETTLE, self._notes, _flatten(settlements))
            except BaseException:
                self.outbox.settlements.extendleft(reversed(settlements))
                raise

    def _next_settlements(self) -> list[Settlement]:
        waiting, batch = self.outbox.settlements, []
        try:
            while len(batch) < _BATCH:
                batch.append(waiting.popleft())
        except IndexError:  # another thread may have been quicker, so asking first would be no use
            pass
        return batch

    def giving_back(
        self, tag: str, queue: str, payload: dict[str, Any], act: str = "next", seen: str = ""
    ) -> Settlement:
        """Make the settlement that queues a message again, to be taken next, marked as kombu marks it."""
        _mark_redelivered(payload)
        key = self._q_for_pri(queue, self._get_message_priority(payload))
        prefix = self.global_keyprefix
        return Settlement(tag, act, seen, prefix + key, dumps(payload), prefix + WAKE_KEY.format(queue))

    # ── Giving back ─────────────────────────────────────────────────────────────────────────────────────────────────
    def restore_overdue(self) -> None:
        """Give back what was taken longer ago than the visibility timeout, unless another worker is just doing it."""
        keys, pause_ms = [*self._notes, RESTORING_KEY], _RESTORING_MS
        while True:
            now, *found = self._run(OVERDUE, keys, [self.visibility_timeout, pause_ms, _BATCH])
            entries = list(zip(found[::3], found[1::3], found[2::3], strict=True))
            for tag, score, entry in reversed(entries):  # the oldest is to be taken first
                self._give_back_entry(bytes_to_str(tag), entry, float(now), "stale", bytes_to_str(score))
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
                    self._give_back_entry(tag, entry, time.time(), "next")
            self.flush()
            self.outbox.lost_takes.popleft()

    def _give_back_entry(self, tag: str, entry: bytes, now: float, act: str, seen: str = "") -> None:
        """Queue again, in the next flush, what an entry of ``unacked`` holds: ours or a plain worker's."""
        try:
            payload, exchange, routing_key = loads(bytes_to_str(entry))
            queues = cast("list[str]", self._lookup(exchange, routing_key))
            if not queues:
                raise LookupError(f"no queue is bound to exchange {exchange!r}")  # noqa: TRY301
            # From a plain worker, the exchange may lead to several queues. Which one it came from, nobody noted.
            acts = [act, *("also" for _ in queues[1:])]
            giving_back = [
                self.giving_back(tag, queue, payload, act, seen) for queue, act in zip(queues, acts, strict=True)
            ]
        except self.connection_errors:
            raise
        except Exception as error:  # noqa: BLE001 - one bad entry must not keep the others
            self._set_aside(tag, "", entry, now, error)
        else:
            self.outbox.settlements.extend(giving_back)

    def _note_lost(self, take: Take) -> None:
        self.outbox.settlements.extendleft(reversed(take.settlements))
        self.outbox.lost_takes.append(take)

    # ── Life of a channel ───────────────────────────────────────────────────────────────────────────────────────────
    def look_after(self) -> None:
        """Do what is due besides taking: overdue messages, and takes whose reply was lost."""
        if self.active_queues:
            self.qos.restore_visible()
            self._give_back_lost_takes()

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
        return super()._purge(queue) + count

    def _delete(self, queue: str, exchange: str, routing_key: str, pattern: str, *args: Any, **kwargs: Any) -> None:
        """Delete a queue, with what is parked."""
        super()._delete(queue, exchange, routing_key, pattern, *args, **kwargs)
        self._script_client.delete(self.global_keyprefix + PARKED_KEY.format(queue))

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
        return "EVALSHA", _SHAS[script], len(keys), *(self.global_keyprefix + key for key in keys), *arguments

    def _run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        command = self._evalsha(script, keys, arguments)
        try:
            return self._script_client.execute_command(*command)
        except NoScriptError:
            self._load_scripts()
            return self._script_client.execute_command(*command)

    def _load_scripts(self) -> None:
        for script in _SHAS:
            self._script_client.script_load(script)


class Transport(plain.Transport):
    """kombu's Redis transport with the channel above."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Join Celery's event loop."""
        self.cycle.loop = loop
        super().register_with_event_loop(connection, loop)

    def _collect(self, connection: Any) -> None:
        """Drop a broken connection. kombu calls this instead of closing, where a transport has it."""
        for channel in {*(self.channels or ()), *self._avail_channels}:
            channel.abandon()
        self.cycle.close()


class Connection(connection.Connection):
    """kombu's connection, which takes this transport for a Redis where the options say so.

    Not an alias in kombu's table: then the broker's URL would have a scheme of ours, which Flower cannot read, TLS
    would go by kombu's treatment of ``rediss`` no more, and a second URL to fail over to would bring the plain one.
    """

    def get_transport_cls(self) -> Any:
        """Choose the transport."""
        chosen = super().get_transport_cls()
        return Transport if chosen is plain.Transport and (self.transport_options or {}).get(OPTION) else chosen


class AMQP(amqp.AMQP):
    """What Celery makes connections with; `app` hands it over."""

    Connection = Connection


# ── Bits ────────────────────────────────────────────────────────────────────────────────────────────────────────────
_SHAS = {script: _sha(script) for script in (PUT, TAKE, SETTLE, OVERDUE)}


def _read(link: Any) -> Any:
    """Read one reply; an error that Redis replied is returned, as the replies behind it must be read, too."""
    try:
        return link.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


def _as_connection_error(error: ResponseError) -> redis.ConnectionError:
    """Make of Redis's refusal, such as that of a master that became a replica, what Celery tries again without end."""
    return redis.ConnectionError(f"Redis refuses: {error}")


def _flatten(settlements: Iterable[Settlement]) -> list[str | bytes]:
    return [part for settlement in settlements for part in settlement]


def _end_of_entry(queue: str) -> str:
    """Give what follows a message in ``unacked``: exchange and routing key, such that it goes back whence it came."""
    return f', "", {dumps(queue)}]'


def _due_at(message: dict[str, Any]) -> float | None:
    """Give a task message's ETA in seconds since 1970; None where it has none that can be read."""
    eta = (message.get("headers") or {}).get("eta")
    if not isinstance(eta, str):
        return None
    try:
        at = datetime.fromisoformat(eta)
    except ValueError:  # Celery refuses it with words of its own
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _without_eta(message: dict[str, Any]) -> dict[str, Any]:
    """Give the message as it is to be run: with an ETA Celery would hold it in the worker's memory until then.

    The message itself stays as it is: where publishing is tried again, it is used again.
    """
    if _due_at(message) is None:
        return message
    return {**message, "headers": {**message["headers"], "eta": None}}


def _mark_redelivered(payload: dict[str, Any]) -> None:
    try:
        payload["headers"]["redelivered"] = True
        payload["properties"]["delivery_info"]["redelivered"] = True
    except (KeyError, TypeError):
        pass


def _nothing() -> None:
    pass
