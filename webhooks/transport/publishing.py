"""The publishing channel: puts messages into lanes, parks those with an ETA, and reads the state of lanes."""

import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from kombu.messaging import Producer
from kombu.utils.imports import symbol_by_name

from webhooks.transport.acks import SettlingChannel
from webhooks.transport.compact import can_shorten, shorten
from webhooks.transport.headers import DUE_HEADER, LANE_HEADER, OTHERS
from webhooks.transport.lanes import FIRST_HEADER, LANES_OPTION, RATE_HEADER, Lanes, parent_lane_of
from webhooks.transport.messages import Admission, LaneState, Turn, due_at, without_eta, write_message
from webhooks.transport.scripts import ADMIT, COUNT, LOOK, PUT, SERIALIZE
from webhooks.transport.settlements import finish, held_tag

#: Valid lane names.
_LANE = re.compile(r"[\w.-]+(?:/[\w.-]+)*", re.ASCII)
_MAX_LANE = 200


class PublishingChannel(SettlingChannel):
    """Queues messages and reads the state of their lanes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        lanes: Lanes | None = self.connection.client.transport_options.get(LANES_OPTION)
        self._lanes: Mapping[str, bool] = lanes["queues"] if lanes else {}
        self._joined: Mapping[str, str] = lanes["joined"] if lanes else {}
        self._lane_of = cast("Callable[[object], str]", symbol_by_name(lanes["lane_of"]) if lanes else _no_lane)

    # ── Publishing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Queue a message, or park it until its ETA.

        kombu queues those of its own batches and of expiring queues; their ETA is handled by the take.
        """
        if kwargs.get("_publish_batch") is not None or queue in getattr(
            self, "_expires", ()
        ):  # older kombu has no queues that expire
            super()._put(queue, message, **kwargs)
            return
        self.run(PUT, *self._put_arguments(queue, [message], self.priority(self._get_message_priority(message))))

    def _inplace_augment_message(self, message: dict[str, Any], exchange: str, routing_key: str) -> None:
        """Make a prepared message's stored form: kombu's, or a shorter one if only our workers take it."""
        if can_shorten(message):
            stored = shorten(message, secrets.token_urlsafe(6))
            message.clear()
            message.update(stored)
        else:
            super()._inplace_augment_message(message, exchange, routing_key)

    def put_all(
        self,
        queue: str,
        messages: Sequence[dict[str, Any]],
        write: Callable[[dict[str, Any]], str | bytes] = write_message,
    ) -> Callable[[], object]:
        """Start to queue messages in one step, in order, or to park those with an ETA.

        Args:
            queue: the queue's name.
            messages: as from `prepare_message`, of the first priority; a few hundred at most, as the script blocks
                Redis.
            write: makes a message's JSON; kombu's default also encodes Python types.

        Returns:
            A function that waits for the end; call it once.
        """
        return self.begin(PUT, *self._put_arguments(queue, messages, 0, write))

    def make_message(self, producer: Producer, body: object, options: dict[str, Any]) -> dict[str, Any]:
        """Make a message for `put_all`, as kombu's `Producer.publish` does for the anonymous exchange.

        Args:
            producer: a producer of this channel.
            body: the body for `publish`.
            options: the options for `publish`.
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
        write: Callable[[dict[str, Any]], str | bytes] = write_message,
    ) -> tuple[list[str], list[Any]]:
        into, has_lanes = self.joined_to(queue), self._has_lanes(queue)
        keys = [self._q_for_pri(queue, priority)]
        if has_lanes and not self._lanes[queue]:
            same = [into, *(name for name in self._lanes if name != into and self.joined_to(name) == into)]
            keys += [self._q_for_pri(name, step) for name in same for step in self.priority_steps]
        arguments: list[Any] = [self.prefixed(""), queue, into, priority]
        for message in messages:
            lane = self.lane_of(message) if has_lanes else ""
            stored, is_first = _without_first(without_eta(message))
            arguments += [
                write(stored),
                _delay_of(message),
                lane,
                parent_lane_of(lane),
                *_rate_of(message),
                int(is_first),
            ]
        return keys, arguments

    # ── Lanes ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _has_lanes(self, queue: str) -> bool:
        return queue in self._lanes

    def _kind_of(self, queue: str) -> str:
        if queue not in self._lanes:
            return ""
        return "bounded" if self._lanes[queue] else "lanes"

    def lane_of(self, message: dict[str, Any]) -> str:
        """Return a message's lane: that of its header, else that of the `lane_of` option."""
        lane = (message.get("headers") or {}).get(LANE_HEADER)
        if not isinstance(lane, str):
            lane = self._lane_of(message)
        return lane if isinstance(lane, str) and len(lane) <= _MAX_LANE and _LANE.fullmatch(lane) else OTHERS

    def joined_to(self, queue: str) -> str:
        """Return the queue whose lanes a queue's messages use."""
        return self._joined.get(queue, queue)

    def list_of(self, queue: str, priority: int) -> str:
        """Return the name of a queue's list for a priority."""
        return self._q_for_pri(queue, priority)

    def serialize(self, parent: str, *, is_serial: bool = True) -> None:
        """Make all lanes of a parent one serial lane from now on, or no longer."""
        if self._lanes:
            self.run(SERIALIZE, [], [self.prefixed(""), parent, int(is_serial), *self._lanes])

    def admit(self, queue: str, attempts: Sequence[Admission], room: int, slots: int) -> Callable[[], list[Turn]]:
        """Start to ask which attempts may be made now without a message, by the rules of their lanes.

        Those with `Turn.NOW` are in flight until `finish`, or until this process's lease lapses; without a lease, for
        twice the visibility timeout.

        Args:
            queue: the queue for the messages of the others.
            attempts: the attempts, the most urgent first.
            room: free threads of this worker.
            slots: all threads of this worker.

        Returns:
            A function that waits for the answers; call it once.
        """
        held_s = 2 * self.visibility_timeout
        arguments: list[Any] = [self.prefixed(""), queue, room, slots, held_s]
        for attempt in attempts:
            arguments += [held_tag(attempt.tag), attempt.lane, *(attempt.rate or ("", ""))]
        wait = self.begin(ADMIT, [self.unacked_key], arguments)

        def read() -> list[Turn]:
            try:
                return [Turn(reply) for reply in wait()]
            except BaseException:
                # Redis may have admitted them, and they will not be made.
                for attempt in attempts:
                    finish(queue, attempt.lane, attempt.tag)
                raise

        return read

    def look_at(self, queue: str, lanes: Sequence[str]) -> list[LaneState]:
        """Return the state of a queue's lanes, in their order."""
        found = self.run(LOOK, [], [self.prefixed(""), queue, *lanes])
        rows = zip(found[::4], found[1::4], found[2::4], found[3::4], strict=True)
        return [LaneState(int(row[0]), int(row[1]), int(row[2]), float(row[3]) if row[3] else None) for row in rows]

    def _count_in_lanes(self, queue: str, *, empties: bool = False) -> int:
        return int(self.run(COUNT, [], [self.prefixed(""), queue, int(empties)])) if self._has_lanes(queue) else 0

    def line_up_forgotten(self) -> None:
        """Restore the turns of lanes, as Redis may have evicted them."""
        for queue in self.active_queues:
            self._count_in_lanes(queue)

    def _size(self, queue: str) -> Any:
        return cast("int", super()._size(queue)) + self._count_in_lanes(queue)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return super()._has_queue(queue, **kwargs) or self._count_in_lanes(queue) > 0


def _delay_of(message: dict[str, Any]) -> float | str:
    """Return the seconds until a message's ETA; "" if it has none or has passed."""
    eta = due_at(message)
    if eta is None:
        return ""
    due = message["headers"].get(DUE_HEADER)
    # The clock may have been stepped since a countdown became an ETA.
    delay_s = due - time.monotonic() if isinstance(due, int | float) else eta - time.time()
    return delay_s if delay_s > 0 else ""


def _rate_of(message: dict[str, Any]) -> tuple[float | str, float | str]:
    """Return the rate limit in a message's header, attempts per second and burst; or two empty texts."""
    limit = (message.get("headers") or {}).get(RATE_HEADER)
    if isinstance(limit, list | tuple) and len(limit) == 2 and all(isinstance(n, int | float) and n > 0 for n in limit):
        return limit[0], limit[1]
    return "", ""


def _without_first(message: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return a message without `FIRST_HEADER`, and whether it comes first in its lane."""
    headers = message.get("headers") or {}
    if FIRST_HEADER not in headers:
        return message, False
    kept = {name: value for name, value in headers.items() if name != FIRST_HEADER}
    return {**message, "headers": kept}, headers[FIRST_HEADER] is True


def _no_lane(message: object) -> str:
    return OTHERS
