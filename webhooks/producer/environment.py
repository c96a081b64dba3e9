"""A Celery app class that ignores Celery's environment variables, and notices about those that are set.

Celery gives some variables priority over an app's configuration: ``CELERY_BROKER_URL`` and the like
(``celery.app.utils.Settings``), ``CELERY_LOADER`` (``celery.app.base``), and ``CELERY_WORKER_…`` for each option of the
worker command. If they are set for another application, our events would go to its broker, or our worker would consume
its queue.
"""

from collections.abc import Mapping
from typing import Any

import click
from celery import Celery
from celery.app.utils import Settings as CeleryOptions
from click.core import ParameterSource

from webhooks.errors import InvalidSettings

_BROKER = "webhooks takes WEBHOOKS_BROKER_URL"
_NO_RESULTS = "webhooks keeps its results as logs in MongoDB"
_OWN_OPTIONS = "webhooks has Celery options of its own"
_COMMAND_LINE = "webhooks takes it from the command line alone"

#: Variables that Celery gives priority, and what applies instead.
_OVERRULED = {
    "CELERY_BROKER_URL": _BROKER,
    "CELERY_BROKER_READ_URL": _BROKER,
    "CELERY_BROKER_WRITE_URL": _BROKER,
    "CELERY_RESULT_BACKEND": _NO_RESULTS,
    "CELERY_LOADER": _OWN_OPTIONS,
    "CELERY_CONFIG_MODULE": _OWN_OPTIONS,
}
#: The same as options of the command ``celery``, by the parameter's name.
_OVERRULED_OPTIONS = {
    "broker": ("-b/--broker", _BROKER),
    "result_backend": ("--result-backend", _NO_RESULTS),
    "loader": ("--loader", _OWN_OPTIONS),
    "config": ("--config", _OWN_OPTIONS),
}
#: Worker options that may come from the environment: they do not affect which messages it takes or what it does.
_OBEYED_OPTIONS = frozenset(
    {"hostname", "loglevel", "logfile", "pidfile", "statedb", "detach", "uid", "gid", "umask", "executable"}
)
_WORKER_PREFIX = "CELERY_WORKER_"


class _OwnOptions(CeleryOptions):
    """The app's options; Celery's class reads the environment first."""

    @property
    def broker_url(self) -> str:
        return self["broker_url"]

    @property
    def broker_read_url(self) -> str:
        return self["broker_url"]

    @property
    def broker_write_url(self) -> str:
        return self["broker_url"]

    @property
    def result_backend(self) -> str | None:
        return self["result_backend"]


class OwnCelery(Celery):
    """A Celery app that takes its options only from its configuration."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _make_own(self._conf)

    def _load_config(self) -> CeleryOptions:
        options = super()._load_config()
        _make_own(options)
        return options

    def _get_default_loader(self) -> str:
        return "celery.loaders.app:AppLoader"


def _make_own(options: object) -> None:
    # Celery's options class cannot be configured, and it would store a plain `__class__ =` as an option.
    object.__setattr__(options, "__class__", _OwnOptions)


def find_overruled(environ: Mapping[str, str], worker: click.Command) -> list[str]:
    """Return a sentence, without values, for each variable that Celery's worker command would obey and ours ignores."""
    options = {f"{_WORKER_PREFIX}{str(option.name).upper()}": _COMMAND_LINE for option in _closed_options(worker)}
    found = [(name, reason) for name, reason in {**_OVERRULED, **options}.items() if environ.get(name)]
    return [f"{name} has no effect: {reason}" for name, reason in found]


def close_worker_options(worker: click.Command) -> None:
    """Stop Celery's worker command from reading options that affect messages from the environment."""
    for option in _closed_options(worker):
        option.allow_from_autoenv = False


def refuse_overruled(celery: click.Context) -> None:
    """Raise InvalidSettings if the command line of ``celery`` has an option that we ignore."""
    for name, (option, reason) in _OVERRULED_OPTIONS.items():
        if celery.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise InvalidSettings(f"{option} has no effect: {reason}; leave it out")


def _closed_options(worker: click.Command) -> list[click.Option]:
    options = [parameter for parameter in worker.params if isinstance(parameter, click.Option)]
    return [option for option in options if option.name not in _OBEYED_OPTIONS]
