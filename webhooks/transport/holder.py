"""The token of this process, and the durations of the leases on what it holds.

A worker renews a lease in Redis for its messages and one in MongoDB for its claims. When a lease lapses, others may
take what its process held. What is held without a lease, as by workers of older versions, is free after a timeout.
"""

import os
import secrets
import time
from functools import partial

#: Interval of renewals, and the delay after one that failed.
RENEW_EVERY_S = 3.0
RENEW_AGAIN_S = 1.0
#: Duration of a lease in Redis from its last renewal. A dead worker's messages come back after 9 to 13 s, as workers
#: check once a second. A live worker loses its lease only after three failed or late renewals.
LEASE_S = 12.0
#: Duration of a lease in MongoDB: shorter by one renewal, so that a message that comes back finds its claim free.
CLAIM_LEASE_S = LEASE_S - RENEW_EVERY_S
#: After a server outage all leases have lapsed though their workers live. So only a process whose own renewals had no
#: gap longer than this, for `WITNESS_AFTER_S`, may declare other leases lapsed: live processes could renew then too.
MAX_GAP_S = 5.0
#: Time for two renewals of every other process.
WITNESS_AFTER_S = 6.0

#: Maximum time from a claim, after which the gate is read, to the start of its request. After a longer pause of the
#: process another worker may have the claim, or the webhook may be paused. Shorter than the rest of a renewed lease.
#: Pausing a webhook waits this long.
BEGIN_WITHIN_S = 2.0

#: A monotonic clock that also counts while the machine is suspended, where the system supports that.
uptime = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

_token = secrets.token_hex(8)


def process_token() -> str:
    """Return the random token of this process; a forked child gets a new one."""
    return _token


def _take_new_token() -> None:
    global _token  # noqa: PLW0603 - one per process
    _token = secrets.token_hex(8)


os.register_at_fork(after_in_child=_take_new_token)
