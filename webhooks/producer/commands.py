"""What stands for `celery flower` where Flower is missing: Celery alone says that there is no such command.

Celery finds its commands by entry points, before it loads an app. So this is one (pyproject.toml), for every app of an
environment in which this package is installed; with Flower it is Flower's own command.
"""

from importlib.util import find_spec

import click


@click.command(
    "flower",
    short_help="Not installed: pip install flower.",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
)
def _missing() -> None:
    raise click.ClickException(
        "Flower is not installed in this environment; in this project it comes with the extra `flower`: "
        "pip install '.[flower]'"
    )


def _find() -> click.Command:
    if find_spec("flower") is None:
        return _missing
    from flower.command import flower  # noqa: PLC0415 - an extra

    return flower


flower = _find()
