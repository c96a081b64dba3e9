"""Lanes: message groups in a fair queue. The scripts in `lua/parts` implement them.

A queue takes from its lanes in turn, so one customer or one slow endpoint does not delay the others. A lane's name is
``group/…``: groups take turns, and lanes within a group do. In a queue with *bounded* lanes each lane has a limit of
messages in flight:

* Its **concurrency window** starts at `FIRST_WINDOW`, grows by one with each success while it is fully used, halves
  with each failure (AIMD), and shrinks to twice the recent use. So an endpoint that stops responding holds few slots.
* A lane may use at most four times the number of **idle threads** of all workers. Lanes that are slow or have had no
  success yet may use three quarters (rounded up) of each worker's threads together.
* The scripts that take and settle messages count those in flight. So a dead worker's count ends with its lease.

A lane may have a rate limit (GCRA: the theoretical arrival time of ITU-T I.371) and may be held until an instant. A
*serial* lane, whose name ends with ``!``, has one message in flight at a time, in the order of arrival. A requeued
message keeps its position.

Keys, with the prefix ``webhooks.`` after the user's; ``q`` is the queue: ``lane.q/name`` (sorted set: messages by
position), ``lanes.q`` (lanes that have messages), ``ring.q`` and ``ring.q/group`` (order of turns), ``later.q`` (lanes
that must wait, by the time of the next check), ``state.q/name``, ``flight.q/name`` (tags in flight), ``slow.q/token``
(a process's tags of slow lanes), ``taken`` (tag → lane and position), ``over.id`` (of an attempt or a take that is over
although its script may still come), ``place`` and ``place.newest`` (last positions), ``serial``, ``sorting`` (lock),
``threads``, ``workers``, ``leases`` (token → end), ``leases.since`` (token → start of renewals without a gap) and
``clock`` (Redis's last time and the sum of its steps back; all times here include both).
"""

from collections.abc import Mapping
from typing import TypedDict

#: Initial concurrency window; lack of messages does not shrink a window below it.
FIRST_WINDOW = 4
#: In ``broker_transport_options``: a `Lanes`.
LANES_OPTION = "webhooks_lanes"
#: Ends the name of a serial lane.
SERIAL = "!"
#: Message header: the rate limit (attempts per second, burst) when the message was made. Used only if Redis has no
#: limit for the lane.
RATE_HEADER = "webhooks_rate"
#: Message header: true puts the message first in its lane. It is not stored.
FIRST_HEADER = "webhooks_first"
#: Header that a worker's message has: the lane that it was taken from, if any.
TAKEN_FROM_HEADER = "webhooks_taken_from"


class Lanes(TypedDict):
    """The value of `LANES_OPTION`: plain data, as tools show it."""

    #: Queues with lanes → whether their lanes are bounded.
    queues: Mapping[str, bool]
    #: Queue → the queue whose lanes its messages use, except for messages of the lane `OTHERS`.
    joined: Mapping[str, str]
    #: ``module:function``: message → lane, for messages without `LANE_HEADER`. Must not raise.
    lane_of: str


def parent_lane_of(lane: str) -> str:
    """Return the parent of a lane, ``group/kind`` of ``group/kind/part``; ``""`` if it has none.

    If the parent is serial, its parts are one lane.
    """
    parts = lane.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 else ""
