"""``webhooks demo``: the main job before one's eyes; see `webhooks.local.demo`."""

import click

from webhooks.config import get_settings
from webhooks.local.demo import run_demo


@click.command()
@click.option("--once", is_flag=True, help="End after the show instead of running on until Ctrl-C.")
def demo(once: bool) -> None:
    """Show the main job: events go out, fail, come back and succeed.

    Starts a Valkey, a MongoDB, a worker, Flower and a receiver of its own on free loopback ports, and leaves nothing
    behind.
    """
    run_demo(get_settings(), once=once)
