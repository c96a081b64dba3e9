"""Whether this worker was told to stop."""

import threading
from typing import Any, cast

from celery.signals import worker_shutting_down


class _SignalEvent(threading.Event):
    """An event that a signal handler sets.

    A second signal may come while the handler of the first one sets it, and holds its lock: that would wait for itself,
    and the worker never end.
    """

    _is_being_set = False

    def set(self) -> None:
        if not self._is_being_set:
            self._is_being_set = True
            super().set()


#: Set when this worker was told to stop: what waits for a server gives its message back instead.
stopping: threading.Event = _SignalEvent()
# Celery takes this lock while it handles the operating system's signal, so the same holds for it.
cast("Any", worker_shutting_down).lock = threading.RLock()


@worker_shutting_down.connect
def _note_stopping(**_: object) -> None:
    stopping.set()
