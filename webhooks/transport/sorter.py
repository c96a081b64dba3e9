"""Puts messages of plain producers into lanes: they come as one line, which a loud one of them would fill.

Owns reading the oldest of such messages and saying to which lane each belongs. A message is in exactly one place all
the time: it is read where it stands, and one script moves it, if it still is there.
"""

import time
from collections.abc import Sequence
from hashlib import sha1
from typing import Any, Protocol

from kombu.utils.json import dumps

from webhooks.transport.headers import OTHERS
from webhooks.transport.lanes import parent_lane_of
from webhooks.transport.messages import due_at, read_message, without_eta
from webhooks.transport.scripts import PARKED_KEY, SORT, UNSORTED, WAKE_KEY

#: Messages sorted in one turn of the worker's event loop: what it takes must not hold up the rest of it.
_BATCH = 250
#: Of a long line also so many of the newest: what has just come is not to wait until all of it is sorted.
_NEWEST = 50
#: Milliseconds for which nobody else sorts: long enough for one turn, short if its worker dies.
_SORTING_MS = 2000


class Sorts(Protocol):
    """What of a channel is needed here."""

    @property
    def priority_steps(self) -> Sequence[int]: ...  # noqa: D102

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any: ...  # noqa: D102

    def list_of(self, queue: str, priority: int) -> str: ...  # noqa: D102

    def lane_of(self, message: dict[str, Any]) -> str: ...  # noqa: D102

    def prefixed(self, key: str) -> str: ...  # noqa: D102


def sort(channel: Sorts, queues: Sequence[str], who: str) -> bool:
    """Put some messages of these queues into their lanes, unless another worker is just doing it.

    Returns:
        Whether there may be more.
    """
    lists = [(queue, priority) for priority in channel.priority_steps for queue in queues]
    keys = [channel.list_of(queue, priority) for queue, priority in lists]
    found = channel.run(UNSORTED, keys, [channel.prefixed(""), who, _SORTING_MS, _BATCH, _NEWEST])
    if not found:
        return False
    queue, priority = lists[int(found[0]) - 1]
    filing: list[Any] = []
    newest, oldest = found[2 : 2 + int(found[1])], found[2 + int(found[1]) :]
    # The newest first: an oldest one that is not as it was ends it.
    for raw in reversed(newest):
        lane, whole, how, _, filed = _file(channel, queue, priority, raw)
        if how == "lane" and not filed:
            filing += [raw, lane, whole, "newest", 0, ""]
    for raw in reversed(oldest):
        filing += [sha1(raw, usedforsecurity=False).hexdigest(), *_file(channel, queue, priority, raw)]
    keys = [channel.list_of(queue, priority), WAKE_KEY.format(queue), PARKED_KEY.format(queue)]
    return bool(channel.run(SORT, keys, [channel.prefixed(""), who, queue, *filing]))


def _file(channel: Sorts, queue: str, priority: int, raw: bytes) -> tuple[str, str, str, float, str]:
    """Say where a message goes, as `SORT` wants it: lane, what that is a part of, how, seconds, what stands for it."""
    try:
        message = read_message(raw)
        lane, eta = channel.lane_of(message), due_at(message)
    except Exception:  # noqa: BLE001 - whatever it is: whoever takes it says so
        return OTHERS, "", "lane", 0, ""
    if eta is None:
        return lane, parent_lane_of(lane), "lane", 0, ""
    filed = dumps(without_eta(message))
    if eta <= time.time():
        return lane, parent_lane_of(lane), "lane", 0, filed
    return lane, parent_lane_of(lane), "park", eta - time.time(), f"{priority}@{lane}:{filed}"
