"""The inspect command ``webhooks_settings``, to which each worker answers with the digest of its settings.

Celery's own remote control, not a document in MongoDB: only workers that live answer, nothing has to be kept fresh or
cleared away, and every broker carries it. The command asks it by `Inspect`: ``celery inspect`` knows only what its own
process has loaded.
"""

from typing import Any

from celery.worker.control import inspect_command

from webhooks.config import get_settings
from webhooks.worker.digest import SETTINGS_COMMAND, Digest


@inspect_command(name=SETTINGS_COMMAND)
def _tell_settings(state: Any, **_: Any) -> dict[str, Any]:
    """Tell the settings of this worker, without secrets."""
    return Digest.of(get_settings()).to_wire()
