"""The Lua scripts that run in Redis, and the names of keys.

Each file in ``lua`` describes its KEYS and ARGV in a comment. No script decodes a message, as Lua's JSON would change
numbers and empty arrays. Most have the flag ``allow-oom``: they only move stored data, and a full Redis must drain.

A line ``--#include NAME`` is replaced by ``parts/NAME.lua``, and ``{NAME}`` by a value of `_CONSTANTS`.
"""

import re
from collections.abc import Mapping
from hashlib import sha1
from importlib.resources import files

from webhooks.transport.headers import OTHERS
from webhooks.transport.holder import LEASE_S, MAX_GAP_S, WITNESS_AFTER_S
from webhooks.transport.lanes import FIRST_WINDOW, SERIAL

PARKED_KEY = "webhooks.parked.{}"
WAKE_KEY = "webhooks.wake.{}"
RESTORING_KEY = "webhooks.restoring"

#: Maximum number of parked messages of a queue that one take moves, and of settlements in one script.
BATCH = 500

#: Maximum number of messages sorted into lanes per turn of the worker's event loop.
FEW = 250

_CONSTANTS: Mapping[str, float | str] = {
    "OTHERS": OTHERS,
    "SERIAL": SERIAL,
    "FEW": FEW,
    "FIRST_WINDOW": FIRST_WINDOW,
    "LEASE_S": LEASE_S,
    "WITNESS_AFTER_S": WITNESS_AFTER_S,
    #: Remaining time of a lease at its renewal, below which there was a gap.
    "RENEWED_IN_TIME_S": LEASE_S - MAX_GAP_S,
    #: Mean duration of attempts from which an endpoint counts as slow.
    "SLOW_S": 1.0,
    #: Duration of an attempt in flight from which no other attempt of its lane waits in a worker.
    "STUCK_S": 0.5,
    #: Estimated wait from which an attempt gets a message; and the mean duration of attempts if unknown.
    "SOON_S": 0.5,
    "MEAN_S": 0.1,
    #: Maximum number of messages in flight of a lane per idle thread.
    "QUICK_FACTOR": 4,
    #: Interval at which a lane's window shrinks to its use.
    "FIT_EVERY_S": 5,
    #: Delay until a lane whose window is full is checked again, if nothing else wakes it.
    "LOOK_AGAIN_S": 5,
    #: The same for a slow lane while slow lanes use all threads that they may, plus the checks per second.
    "SLOW_LOOK_AGAIN_S": 0.25,
    "LANES_LOOKED_AT_PER_S": 2_000,
    #: Time for which a lane's state is kept after its last attempt.
    "STATE_KEPT_S": 86_400,
    #: Time within which Redis may carry out a script whose connection is dead.
    "OVER_KEPT_S": 600,
    #: Maximum number of lanes examined for one message; the next take continues after them.
    "MOST_LOOKS": 64,
    #: Time after its last report from which a worker counts as gone.
    "WORKER_GONE_S": 5,
}

_LUA = files("webhooks.transport") / "lua"


def _load(name: str) -> str:
    """Read a script and insert its parts and constants."""
    text = (_LUA / f"{name}.lua").read_text(encoding="utf-8")
    text = re.sub(r"^--#include (\w+)\n", lambda include: _load(f"parts/{include[1]}"), text, flags=re.MULTILINE)
    return re.sub(r"\{([A-Z][A-Z_]*)\}", lambda constant: str(_CONSTANTS[constant[1]]), text)


PUT, ADMIT, TAKE, SETTLE, OVERDUE = map(_load, ("put", "admit", "take", "settle", "overdue"))
UNSORTED, SORT, SERIALIZE = map(_load, ("find_unsorted", "sort", "serialize"))
LOOK, COUNT, ALIVE, LEASE = map(_load, ("look", "count_lanes", "alive", "lease"))
#: Run with EVAL by any client, such as Flower's.
COUNT_QUEUES = _load("count_queues")

#: Script → its hash for EVALSHA.
SHAS = {
    script: sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (PUT, ADMIT, TAKE, SETTLE, OVERDUE, UNSORTED, SORT, SERIALIZE, LOOK, COUNT, ALIVE, LEASE)
}
