"""The Celery app of workers and producers. Producers load it, so it imports nothing of the worker."""

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
    """Load our celeryconfig by its path: by its name a service would get its own."""
    installed = _PACKAGE / "celeryconfig.py"
    path = installed if installed.exists() else _PACKAGE.parent / "celeryconfig.py"
    spec = importlib.util.spec_from_file_location("webhooks.celeryconfig", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _LazyConfig(Mapping[str, Any]):
    """Our celeryconfig, loaded when Celery first needs an option.

    An invalid setting is then an error of the command that needs it, and not of each import of this package.
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
    """Check packages, settings and options before each `celery -A webhooks …`, and point Flower to its config."""
    try:
        require("worker")
        get_settings()
        if context.parent is not None:
            refuse_overruled(context.parent)
        if context.command.name == "worker":
            close_worker_options(context.command)
            # A MongoDB URL that the driver refuses fails the command, not each event.
            cast("Any", symbol_by_name("webhooks.delivery.services:get_services"))()
    except (NotInstalled, InvalidSettings) as error:
        raise click.ClickException(str(error)) from None
    # Flower looks only in the current folder; without this file it listens on all addresses.
    if not Path("flowerconfig.py").exists():
        os.environ.setdefault("FLOWER_CONF", str(_PACKAGE / "web" / "flowerconfig.py"))


#: Modules that only workers load: periodic tasks and handlers of Celery's signals.
_WORKERS_MODULES = (
    "webhooks.worker.bindings",
    "webhooks.worker.json_lines",
    "webhooks.worker.renewal",
    "webhooks.worker.startup",
    "webhooks.worker.tasks",
    "webhooks.metrics.server",
    "webhooks.jobs.sweep",
    "webhooks.jobs.health_monitor",
    "webhooks.jobs.resend",
)
# Not the current app: the importing service keeps its own.
app = OwnCelery("webhooks", set_as_current=False, amqp="webhooks.transport.connection:AMQP", include=_WORKERS_MODULES)
app.config_from_object(_LazyConfig())
# Celery adds this option to each of its commands, Flower's included, and calls it before it reads its options.
cast("dict[str, set[click.Option]]", app.user_options)["preload"].add(
    click.Option(
        ["--check-settings"], is_flag=True, hidden=True, is_eager=True, expose_value=False, callback=_prepare_command
    )
)
