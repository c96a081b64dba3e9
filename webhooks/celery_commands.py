"""Has `celery -A webhooks flower` say how to install Flower where it is missing: Celery says "no such command"."""

import sys
from typing import Any

import click


def add_missing_flower() -> None:
    """Add a command that stands for Flower's, in a process that is Celery's command line and has no Flower."""
    command_line: Any = sys.modules.get("celery.bin.celery")
    if command_line is not None and "flower" not in command_line.celery.commands:
        command_line.celery.add_command(_flower)


@click.command(
    "flower",
    short_help="Not installed: pip install '.[flower]'.",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
)
def _flower() -> None:
    raise click.ClickException(
        "Flower is not installed in this environment: it comes with the extra `flower`: pip install '.[flower]' in "
        "this project"
    )
