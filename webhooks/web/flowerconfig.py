"""Flower's options for `celery -A webhooks flower`, each with its reason. Flower runs this file before it starts."""

from ipaddress import ip_address

import click
from tornado.options import options

from webhooks.web.extension import install
from webhooks.web.metrics import replace_metrics
from webhooks.web.pages import HANDLERS
from webhooks.web.queues import count_lanes


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# Who sees Flower sees every company's webhooks and can stop workers, and Flower by itself asks for no password. So it
# listens on this machine alone, unless the command line or FLOWER_ADDRESS says otherwise, and then it wants to know
# who may come in. Flower has read both before this file.
address = options.address or "127.0.0.1"
if not (_is_loopback(address) or options.basic_auth or options.auth):
    raise click.ClickException(
        f"Flower would be open to everybody who reaches {address}: set FLOWER_BASIC_AUTH=USER:PASSWORD, or give --auth "
        "with an OAuth provider; see docs/operations.md"
    )

# An attempt at a glance: which event went to which webhook (args), and what came back (result, or the exception of a
# failed attempt). The payload is in none of them.
tasks_columns = "name,state,args,result,exception,retries,received,runtime,kwargs,uuid,worker"

# Each event and each attempt is a task here, at full load as well: received, then succeeded, retried or failed; started
# is told of what takes longer than half a second. At 1,700 deliveries a second the memory is that of the last three
# seconds: it is for looking at what happens now, and the logs in MongoDB are what happened.
max_tasks = 10_000

# What waits in lanes counts as well.
count_lanes()

# What MongoDB and the broker tell of the whole system, in Prometheus's format.
replace_metrics()

# The tab "Webhooks".
install(HANDLERS)
