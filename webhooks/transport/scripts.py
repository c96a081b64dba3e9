"""The scripts that run inside Redis, each of which does one step as a whole, and the names of our keys.

A script is a file of the folder ``lua`` and says in its head what KEYS and ARGV are. No script decodes a message: Lua's
JSON would change numbers and empty arrays, so what is stored is what came, byte for byte. Most have the flag
``allow-oom``: they only move what Redis holds already, and a full Redis must be able to drain.

Two things in a file are not Lua. A line ``--#include NAME`` stands for the file ``parts/NAME.lua``. ``{NAME}`` stands
for a number or a name of `_CONSTANTS`.
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

#: Parked messages of one queue that one take moves, and settlements of one script: bounds how long Redis is busy.
BATCH = 500

#: Messages put into lanes in one turn of the worker's event loop: what it takes must not hold up the rest of it. So few
#: are in their lanes soon.
FEW = 250

_CONSTANTS: Mapping[str, float | str] = {
    "OTHERS": OTHERS,
    "SERIAL": SERIAL,
    "FEW": FEW,
    "FIRST_WINDOW": FIRST_WINDOW,
    "LEASE_S": LEASE_S,
    "WITNESS_AFTER_S": WITNESS_AFTER_S,
    #: Seconds that a lease must have left when it is renewed, so that there is no gap in it.
    "RENEWED_IN_TIME_S": LEASE_S - MAX_GAP_S,
    #: Seconds that its attempts may take on the average before an endpoint counts as slow.
    "SLOW_S": 1.0,
    #: Seconds that an attempt may be in hand before nobody waits in a worker for it to end.
    "STUCK_S": 0.5,
    #: Seconds that the messages before an attempt may take, by what its endpoint takes on the average, before the
    #: attempt gets a message as well; and that average where it is not known.
    "SOON_S": 0.5,
    "MEAN_S": 0.1,
    #: What an endpoint may take of the free threads: if it is quick, so much for each one that it leaves.
    "QUICK_FACTOR": 4,
    #: Seconds after which a lane's share is fitted to what it used.
    "FIT_EVERY_S": 5,
    #: Seconds until a lane that waits for its own messages is looked at again, should nothing else wake it.
    "LOOK_AGAIN_S": 5,
    #: The same of a slow one while too many slow ones are in hand; and how many such lanes are looked at per second.
    "SLOW_LOOK_AGAIN_S": 0.25,
    "LANES_LOOKED_AT_PER_S": 2_000,
    #: Seconds for which what is known of an endpoint is kept after its last attempt.
    "STATE_KEPT_S": 86_400,
    #: Lanes that one message looks into before it gives up; the next one goes on with those behind them.
    "MOST_LOOKS": 64,
    #: Seconds after which a worker that was not heard of is gone.
    "WORKER_GONE_S": 5,
}

_LUA = files("webhooks.transport") / "lua"


def _load(name: str) -> str:
    """Read a script, put in its parts and its constants."""
    text = (_LUA / f"{name}.lua").read_text(encoding="utf-8")
    text = re.sub(r"^--#include (\w+)\n", lambda include: _load(f"parts/{include[1]}"), text, flags=re.MULTILINE)
    return re.sub(r"\{([A-Z][A-Z_]*)\}", lambda constant: str(_CONSTANTS[constant[1]]), text)


PUT, ADMIT, TAKE, SETTLE, OVERDUE = map(_load, ("put", "admit", "take", "settle", "overdue"))
UNSORTED, SORT, SERIALIZE = map(_load, ("find_unsorted", "sort", "serialize"))
LOOK, COUNT, ALIVE, LEASE = map(_load, ("look", "count_lanes", "alive", "lease"))
#: Sent as it is, by any client: Flower's has none of the others loaded.
COUNT_QUEUES = _load("count_queues")

#: What Redis knows each script by.
SHAS = {
    script: sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (PUT, ADMIT, TAKE, SETTLE, OVERDUE, UNSORTED, SORT, SERIALIZE, LOOK, COUNT, ALIVE, LEASE)
}
