"""The event that is set when this worker shuts down."""

import threading


class _SignalEvent(threading.Event):
    """An event that a signal handler may set.

    A second signal may interrupt the first handler inside `set`. Without the flag, it would wait for the lock that its
    own thread holds.
    """

    _is_being_set = False

    def set(self) -> None:
        if not self._is_being_set:
            self._is_being_set = True
            super().set()


#: Set at shutdown: steps that wait for a server requeue their messages instead.
stopping: threading.Event = _SignalEvent()
