"""What a worker says when it starts of an environment that is not as its user means it. Loaded in workers only."""

import logging
import os

from celery.bin.worker import worker
from celery.signals import celeryd_after_setup

from webhooks.config import find_notices
from webhooks.environment import find_overruled

logger = logging.getLogger(__name__)


@celeryd_after_setup.connect
def _warn(**_: object) -> None:
    """Log a warning for each; the signal is sent once logging is set up."""
    for notice in [*find_notices(os.environ), *find_overruled(os.environ, worker)]:
        logger.warning("%s", notice)
