"""Puts messages of plain producers into lanes: they come as one line, which a loud one of them would fill.

Owns reading the oldest of such messages and saying to which lane each belongs. A message is in exactly one place all
the time: it is read where it stands, and one script moves it, if it still is there.
"""

from collections.abc import Sequence
from hashlib import sha1
from typing import Any, Protocol

from kombu.utils.json import dumps

from webhooks.transport.headers import OTHERS
from webhooks.transport.lanes import parent_lane_of
from webhooks.transport.messages import due_at, read_message, without_eta
from webhooks.transport.scripts import FEW, SORT, UNSORTED

#: Of a long line also so many of the newest: what has just come is not to wait until all of it is sorted.
_NEWEST = 50
#: Milliseconds for which nobody else sorts: long enough for one turn, short if its worker dies.
_SORTING_MS = 2000


class Sorts(Protocol):
    """What of a channel is needed here."""

    @property
    def priority_steps(self) -> Sequence[int]: ...  # noqa: D102

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any: ...  # noqa: D102

    def joined_to(self, queue: str) -> str: ...  # noqa: D102

    def list_of(self, queue: str, priority: int) -> str: ...  # noqa: D102

    def lane_of(self, message: dict[str, Any]) -> str: ...  # noqa: D102

    def prefixed(self, key: str) -> str: ...  # noqa: D102


def sort(channel: Sorts, queues: Sequence[str], who: str) -> bool:
    """Put some messages of these queues into their lanes, unless another worker is just doing it.

    Returns:
        Whether there may be more.
    """
    # What stands in a list of the queue that others are joined to came first: see `put.lua`.
    by_age = sorted(queues, key=lambda queue: channel.joined_to(queue) != queue)
    lists = [(queue, priority) for queue in by_age for priority in channel.priority_steps]
    keys = [channel.list_of(queue, priority) for queue, priority in lists]
    found = channel.run(UNSORTED, keys, [channel.prefixed(""), who, _SORTING_MS, FEW, _NEWEST])
    if not found:
        return False
    queue, priority = lists[int(found[0]) - 1]
    filing: list[Any] = []
    present, end = float(found[2]), 3 + int(found[1])
    newest, oldest = found[3:end], found[end:]
    # The newest first: an oldest one that is not as it was ends it.
    for raw in reversed(newest):
        lane, whole, how, _, filed = _file(channel, queue, priority, raw, present)
        if how == "lane" and not filed:
            filing += [raw, lane, whole, "newest", 0, ""]
    for raw in reversed(oldest):
        filing += [sha1(raw, usedforsecurity=False).hexdigest(), *_file(channel, queue, priority, raw, present)]
    about = [channel.prefixed(""), who, queue, channel.joined_to(queue)]
    return bool(channel.run(SORT, [channel.list_of(queue, priority)], [*about, *filing]))


def _file(channel: Sorts, queue: str, priority: int, raw: bytes, present: float) -> tuple[str, str, str, float, str]:
    """Say where a message goes, as `SORT` wants it: lane, what that is a part of, how, seconds, what stands for it."""
    try:
        message = read_message(raw)
        lane, eta = channel.lane_of(message), due_at(message)
    except Exception:  # noqa: BLE001 - whatever it is: whoever takes it says so
        return OTHERS, "", "lane", 0, ""
    if eta is None:
        return lane, parent_lane_of(lane), "lane", 0, ""
    filed = dumps(without_eta(message))
    if eta <= present:
        return lane, parent_lane_of(lane), "lane", 0, filed
    return lane, parent_lane_of(lane), "park", eta - present, f"{priority}@{lane}:{filed}"
