"""Who holds what was taken: one token per process, and for how long a lease on it is good.

A worker renews a lease in Redis, where its messages and lane slots are (`transport`), and one in MongoDB, where its
claims are (`leases`). What is held under a lapsed lease is free. What is held under a token without a lease, such as
that of a worker of an older version, is free after the time-outs of before.
"""

import os
import secrets
import time
from functools import partial

#: Seconds between two renewals, and after one that failed.
RENEW_EVERY_S = 3.0
RENEW_AGAIN_S = 1.0
#: Seconds that a lease in Redis is good for from its last renewal. So a dead worker's messages come back after 9 to
#: 13 s: workers look once a second. A live worker loses nothing until three renewals in a row have failed or are late:
#: more than threads that want the interpreter, a full collection of garbage or a slow fsync take.
LEASE_S = 12.0
#: The same of a lease in MongoDB. Shorter by a renewal, so that a message that comes back finds its claim free. A live
#: worker whose lease lapses here alone loses nothing, unless there is a second message of the same attempt.
CLAIM_LEASE_S = LEASE_S - RENEW_EVERY_S
#: When the server was away or paused, all leases lapse together and none of their workers is dead. So only a process
#: says of others that their leases lapsed whose own renewals came without a longer gap than this, in seconds: then the
#: others' could come as well, the latest of them `RENEW_EVERY_S` earlier, which is less than a lease.
MAX_GAP_S = 5.0
#: ... and that for so many seconds: time for two renewals of everyone else.
WITNESS_AFTER_S = 6.0

#: Seconds from a claim, after which its webhook's gate is read, until its request is begun, at most: if the process was
#: paused since, another one may have the claim, or the webhook be paused. Less than is left of a lease, at least, that
#: is renewed; far more than goes by under load. A pause waits so long, and holds from then on.
BEGIN_WITHIN_S = 2.0

#: Seconds that go on while the process is paused, and while its machine is suspended where the system counts that.
uptime = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

_token = secrets.token_hex(8)


def process_token() -> str:
    """Return what this process holds things under; another one in each process and after each start."""
    return _token


def _take_new_token() -> None:
    global _token  # noqa: PLW0603 - a process has one, and a forked child is another process
    _token = secrets.token_hex(8)


os.register_at_fork(after_in_child=_take_new_token)
