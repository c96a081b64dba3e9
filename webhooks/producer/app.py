"""The Celery app: what `celery -A webhooks` finds, and what a producer's messages go by.

Owns configuration and wiring. A producer loads this, so it loads nothing of the worker, and opens no connection.
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import click
from kombu.utils.imports import symbol_by_name

from webhooks.config import get_settings
from webhooks.errors import InvalidSettings, NotInstalled
from webhooks.producer.environment import OwnCelery, close_worker_options, refuse_overruled
from webhooks.producer.extras import require

_PACKAGE = Path(__file__).parents[1]


def _load_celeryconfig() -> ModuleType:
    """Load our celeryconfig by its place, never by its name: a service that imports us has one of its own."""
    installed = _PACKAGE / "celeryconfig.py"
    path = installed if installed.exists() else _PACKAGE.parent / "celeryconfig.py"
    spec = importlib.util.spec_from_file_location("webhooks.celeryconfig", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _LazyConfig(Mapping[str, Any]):
    """Our celeryconfig, read when Celery first needs an option.

    So a setting that cannot be used is an error of the command or call that needs it, which can say so in one line,
    and not of everybody who imports this package.
    """

    @cached_property
    def _options(self) -> dict[str, Any]:
        return vars(_load_celeryconfig())

    def __getitem__(self, key: str) -> Any:
        return self._options[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)


def _prepare_command(context: click.Context, *_: object) -> None:
    """Do what comes first in each `celery -A webhooks …`: check packages and settings, and show Flower its own."""
    try:
        require("worker")
        get_settings()
        if context.parent is not None:
            refuse_overruled(context.parent)
        if context.command.name == "worker":
            close_worker_options(context.command)
            # What the driver of MongoDB refuses is an error of the command, not of each event.
            cast("Any", symbol_by_name("webhooks.delivery.services:get_services"))()
    except (NotInstalled, InvalidSettings) as error:
        raise click.ClickException(str(error)) from None
    # Flower looks for it in the current folder alone, and without it listens to everybody.
    if not Path("flowerconfig.py").exists():
        os.environ.setdefault("FLOWER_CONF", str(_PACKAGE / "web" / "flowerconfig.py"))


#: What only workers load, by its import: tasks that run by the clock, and what answers Celery's signals there.
_WORKERS_MODULES = (
    "webhooks.worker.bindings",
    "webhooks.worker.inspection",
    "webhooks.worker.renewal",
    "webhooks.worker.startup",
    "webhooks.worker.tasks",
    "webhooks.jobs.sweep",
    "webhooks.jobs.health_monitor",
)
# Not the current app: a producer that imports us keeps its own.
app = OwnCelery("webhooks", set_as_current=False, amqp="webhooks.transport.connection:AMQP", include=_WORKERS_MODULES)
app.config_from_object(_LazyConfig())
# Celery adds these to each of its commands, Flower's included. This one is only there for its callback, which comes
# before Celery reads its options.
cast("dict[str, set[click.Option]]", app.user_options)["preload"].add(
    click.Option(
        ["--check-settings"], is_flag=True, hidden=True, is_eager=True, expose_value=False, callback=_prepare_command
    )
)
