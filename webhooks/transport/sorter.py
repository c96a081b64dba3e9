"""Sorts messages of plain producers, which share one list per queue, into lanes.

Messages are read in the list, and one script moves those that are still there. So a message is always in one place.
"""

from collections.abc import Sequence
from hashlib import sha1
from typing import Any, Protocol

from kombu.utils.json import dumps

from webhooks.transport.headers import OTHERS
from webhooks.transport.lanes import parent_lane_of
from webhooks.transport.messages import due_at, read_message, without_eta
from webhooks.transport.scripts import FEW, SORT, UNSORTED

#: Number of newest messages of a long list that are sorted as well, so that they do not wait for all older ones.
_NEWEST = 50
#: Duration of the lock that keeps other workers from sorting.
_SORTING_MS = 2000


class Sorts(Protocol):
    """The methods of a channel that sorting uses."""

    @property
    def priority_steps(self) -> Sequence[int]: ...  # noqa: D102

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any: ...  # noqa: D102

    def joined_to(self, queue: str) -> str: ...  # noqa: D102

    def list_of(self, queue: str, priority: int) -> str: ...  # noqa: D102

    def lane_of(self, message: dict[str, Any]) -> str: ...  # noqa: D102

    def prefixed(self, key: str) -> str: ...  # noqa: D102


def sort(channel: Sorts, queues: Sequence[str], who: str) -> bool:
    """Sort some messages of queues into lanes, unless another worker does; return whether there may be more."""
    # Messages in a list of the queue that others are joined to are older: see `put.lua`.
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
    # The newest first, as the script stops at an oldest message that has changed.
    for raw in reversed(newest):
        lane, parent, how, _, filed = _file(channel, queue, priority, raw, present)
        if how == "lane" and not filed:
            filing += [raw, lane, parent, "newest", 0, ""]
    for raw in reversed(oldest):
        filing += [sha1(raw, usedforsecurity=False).hexdigest(), *_file(channel, queue, priority, raw, present)]
    about = [channel.prefixed(""), who, queue, channel.joined_to(queue)]
    return bool(channel.run(SORT, [channel.list_of(queue, priority)], [*about, *filing]))


def _file(channel: Sorts, queue: str, priority: int, raw: bytes, present: float) -> tuple[str, str, str, float, str]:
    """Return a message's arguments for `SORT`: lane, parent, "lane" or "park", seconds, the text that replaces it."""
    try:
        message = read_message(raw)
        lane, eta = channel.lane_of(message), due_at(message)
    except Exception:  # noqa: BLE001 - the consumer reports it
        return OTHERS, "", "lane", 0, ""
    if eta is None:
        return lane, parent_lane_of(lane), "lane", 0, ""
    filed = dumps(without_eta(message))
    if eta <= present:
        return lane, parent_lane_of(lane), "lane", 0, filed
    return lane, parent_lane_of(lane), "park", eta - present, f"{priority}@{lane}:{filed}"
