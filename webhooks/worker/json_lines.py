"""The worker's log lines as JSON objects: ``WEBHOOKS_LOG_FORMAT=json``."""

import json
import logging
import os
import sys
import warnings
from contextlib import suppress
from datetime import UTC, datetime
from typing import IO, Any

import celery.apps.worker as celery_worker
from celery.signals import after_setup_logger, after_setup_task_logger, celeryd_init

from webhooks.config import get_settings
from webhooks.delivery.record import ATTEMPT
from webhooks.models import format_instant
from webhooks.producer.app import app


class JsonFormatter(logging.Formatter):
    """Formats each record as one JSON object.

    It is ASCII: text from producers and receivers can neither begin a line nor reach a terminal as control characters.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": format_instant(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, ATTEMPT, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


_formatter = JsonFormatter()


@celeryd_init.connect
def _write_json(instance: Any, **_: object) -> None:
    """Have a worker write JSON only, if the setting says so, from Celery's first warnings on."""
    if instance.app is not app or get_settings().log_format != "json":
        return
    for signal in (after_setup_logger, after_setup_task_logger):
        signal.connect(_format)
    instance.quiet = True  # no banner
    celery_worker.safe_say = _say
    # Until Celery sets up logging, which captures warnings.
    warnings.showwarning = _show_warning


def _format(logger: logging.Logger, **_: object) -> None:
    for handler in logger.handlers:
        handler.setFormatter(_formatter)


def _say(text: str, file: IO[str] | None = None) -> None:
    """Write what Celery says in a signal handler, where a logger's locks may be taken."""
    _write(celery_worker.__name__, logging.INFO, text, file)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    _write("py.warnings", logging.WARNING, warnings.formatwarning(message, category, filename, lineno, line), file)


def _write(logger: str, level: int, text: str, file: IO[str] | None) -> None:
    record = logging.LogRecord(logger, level, "", 0, text, None, None)
    file = file or sys.__stderr__
    with suppress(OSError):  # as Celery does
        if file is not None:
            os.write(file.fileno(), f"{_formatter.format(record)}\n".encode())
