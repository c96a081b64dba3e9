"""``webhooks demo``; see `webhooks.local.demo`."""

import click

from webhooks.config import get_settings
from webhooks.local.demo import run_demo


@click.command()
@click.option("--once", is_flag=True, help="End after the demo instead of waiting for Ctrl-C.")
def demo(once: bool) -> None:
    """Show how events are delivered, fail, are retried and succeed.

    Starts its own Valkey, MongoDB, worker, Flower and receiver on free loopback ports, and leaves nothing behind.
    """
    run_demo(get_settings(), once=once)
