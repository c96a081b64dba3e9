"""The inspect command ``webhooks_settings``, to which each worker replies with the digest of its settings.

Remote control instead of a document in MongoDB: only live workers reply, and there is nothing to refresh or clean up.
"""

from typing import Any

from celery.worker.control import inspect_command

from webhooks.config import get_settings
from webhooks.worker.digest import SETTINGS_COMMAND, Digest


@inspect_command(name=SETTINGS_COMMAND)
def _report_settings(state: Any, **_: Any) -> dict[str, Any]:
    """Report the settings of this worker, without secrets."""
    return Digest.of(get_settings()).to_wire()
