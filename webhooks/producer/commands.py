"""``celery flower``: Flower's own command, or an error that says how to install Flower.

Celery finds commands by entry points (pyproject.toml) before it loads an app, so this serves every app here.
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
