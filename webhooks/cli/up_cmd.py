"""``webhooks up``; see `webhooks.local.up`."""

from pathlib import Path

import click

from webhooks.config import get_settings
from webhooks.local.up import run_up, with_loopback


@click.command()
@click.option(
    "--data",
    "data_dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("webhooks-data"),
    show_default=True,
    metavar="DIR",
    help="Where Valkey and MongoDB keep their data.",
)
@click.option("--flower-port", type=click.IntRange(1, 65_535), default=5555, show_default=True, help="On loopback.")
@click.option(
    "--allow-loopback",
    is_flag=True,
    help="Allow requests to this machine: 127.0.0.0/8 and ::1 in addition to WEBHOOKS_ALLOWED_NETWORKS.",
)
def up(data_dir: Path, flower_port: int, allow_loopback: bool) -> None:
    """Run Valkey, MongoDB, a worker and Flower on this machine, until Ctrl-C.

    They listen only on loopback. If WEBHOOKS_BROKER_URL or WEBHOOKS_MONGODB_URL names another server, that one is used.
    """
    settings = get_settings()
    run_up(data_dir, with_loopback(settings) if allow_loopback else settings, flower_port=flower_port)
