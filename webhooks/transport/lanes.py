"""Lanes: what keeps one customer, or one slow endpoint, from delaying the others. Its names; `lua/parts` does it.

A queue that has lanes has no one line but many, and takes from them in turn. A lane's name is ``group/…``: groups take
turns, and within a group its lanes do, whatever waits in each. Where lanes are *bounded*, only so many messages of one
may be in workers' hands at a time:

* A lane has a **share**: so many at a time. It begins at `FIRST_WINDOW`, grows by one with each good answer that comes
  while all of it is used, halves with each bad one, and shrinks to twice of what was needed lately. So an endpoint that
  stops answering holds little more than it needed when it answered.
* Besides, it gets no more than four times **what is free**: of all threads of all workers, those that have nothing in
  hand. Lanes that are slow, or of which nothing good is known yet, have three quarters of each worker's threads: a
  worker may hold messages of others besides, which must not wait behind slow ones while another worker is idle.
* What is in hand is counted by the messages themselves, in the scripts that take and settle them. So a worker that dies
  holds its part until its lease lapses, and no longer.

A lane may have a rate limit (GCRA: the theoretical arrival time of ITU-T I.371), and may be held until an instant. A
*serial* lane, whose name ends with ``!``, gives out one message at a time, in the order in which they came: its place
in the order stays a message's own when it is given back.

Keys, each behind ``webhooks.`` and the user's prefix, ``q`` the queue: ``lane.q/name`` (a sorted set: messages by
place), ``lanes.q`` (those that have any), ``ring.q`` and ``ring.q/group`` (whose turn it is), ``later.q`` (those that
may not go now, and when to look again), ``state.q/name``, ``flight.q/name`` (what of it is in hand), ``slow.q/token``
(what of slow ones a process has), ``taken`` (whence each message in hand came), ``place``, ``place.newest``,
``serial``, ``sorting``, ``threads``, ``workers``, ``leases`` (until when each process holds what it holds),
``leases.since`` (from when on it has renewed its lease without a gap) and ``clock`` (Redis's time when it was looked at
last, and how far it is behind for having gone back: all other times count by both).
"""

from collections.abc import Mapping
from typing import TypedDict

#: Attempts at one time that an endpoint begins with, and does not fall below for want of work.
FIRST_WINDOW = 4
#: In ``broker_transport_options``: a `Lanes`.
LANES_OPTION = "webhooks_lanes"
#: Ends the name of a serial lane.
SERIAL = "!"
#: In a message's headers, of a webhook with a limit: attempts per second and burst, as they were when it was made. Only
#: for a lane of which Redis knows no limit, as it has lost what it knew.
RATE_HEADER = "webhooks_rate"
#: True: the message comes first in its lane. Only told to the transport, which does not store it.
FIRST_HEADER = "webhooks_first"
#: In the headers of a message as the worker gets it: the lane that it came out of; not there if it came out of none.
TAKEN_FROM_HEADER = "webhooks_taken_from"


class Lanes(TypedDict):
    """Which queues have lanes: the value of ``webhooks_lanes`` in ``broker_transport_options``, which tools show."""

    #: Names of the queues, and whether what is in hand of one lane is bounded.
    queues: Mapping[str, bool]
    #: Queue → another one, in whose lanes its messages stand, but for those that are in no lane of their own.
    joined: Mapping[str, str]
    #: ``module:function``: message → lane, of one that has no `LANE_HEADER`. Must not raise.
    lane_of: str


def parent_lane_of(lane: str) -> str:
    """Return what a lane is a part of, ``group/kind`` of ``group/kind/part``; ``""`` where there is no such thing.

    If that is serial, all its parts are one lane.
    """
    parts = lane.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 else ""
