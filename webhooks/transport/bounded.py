"""A connection for publishing that waits for a broker that is away for a limited time in all.

kombu counts tries instead, and a single one can take as long as a socket's timeout; while it connects for the first
time it does not count at all. So a call of a service could take half a minute, or several.
"""

import time
from collections.abc import Callable
from typing import Any, ClassVar

from kombu import connection
from kombu.exceptions import OperationalError

#: Seconds between two tries: long enough for a broker that restarts, short enough to notice that it is back.
_PAUSE_S = 0.2
#: Share of the time that a first try may take, so that there is a second one where a server hangs.
_FIRST_TRY = 0.5
#: Seconds that a try may take at least.
_MIN_TRY_S = 0.05


class BoundedConnection(connection.Connection):
    """Tries to publish for ``connect_timeout`` seconds in all, however the broker is away."""

    #: Set in a worker: nobody waits for its calls, and to wait on a socket costs it less than to do things again.
    is_patient: ClassVar[bool] = False

    #: By `time.monotonic`; None: ``connect_timeout`` from when `ensure`'s function is called.
    give_up_at: float | None = None

    #: Whether what is left of a call's time bounds this connection, so that the next call has to make another.
    _is_hasty = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timeout_s: float = self.connect_timeout
        self._options = self.transport_options
        if not self.is_patient:
            self._limit_try(self._timeout_s * _FIRST_TRY)

    def ensure(self, obj: Any, fun: Callable[..., Any], *args: Any, **policy: Any) -> Callable[..., Any]:
        """Return a function that does what another one does, again and again while the broker is away.

        Args:
            obj: gets ``revive(channel)`` after a new connection.
            fun: publishes.
            args: as for kombu's own, which a worker uses.
            policy: likewise.

        Returns:
            The function. It raises OperationalError when the time is up.
        """
        if self.is_patient:
            return super().ensure(obj, fun, *args, **policy)

        def ensured(*args: Any, **kwargs: Any) -> Any:
            give_up_at = self.give_up_at or time.monotonic() + self._timeout_s
            first_s = min(self._timeout_s * _FIRST_TRY, give_up_at - time.monotonic())
            is_lost = self._is_hasty or first_s < self._timeout_s * _FIRST_TRY
            if is_lost:
                self._drop(max(first_s, _MIN_TRY_S))
            with self._reraise_as_library_errors():
                while True:
                    try:
                        if is_lost:
                            obj.revive(self.default_channel)
                        return fun(*args, **kwargs)
                    except self._outages:
                        left_s = give_up_at - time.monotonic() - _PAUSE_S
                        is_lost, is_over = True, left_s < _MIN_TRY_S
                        self._drop(self._timeout_s * _FIRST_TRY if is_over else left_s)
                        self.maybe_switch_next()
                        if is_over:
                            raise
                        time.sleep(_PAUSE_S)

        return ensured

    @property
    def _outages(self) -> tuple[type[BaseException], ...]:
        return (OperationalError, *self.recoverable_connection_errors, *self.recoverable_channel_errors)

    def _extract_failover_opts(self) -> dict[str, Any]:
        # What connects within `ensured` tries once, as that has the time in view.
        return super()._extract_failover_opts() if self.is_patient else {"max_retries": 0}

    def _drop(self, seconds: float) -> None:
        """Drop the connection; the next one waits for so long at most."""
        self.collect()
        self._limit_try(seconds)

    def _limit_try(self, seconds: float) -> None:
        """Bound what the next connection waits for, besides what the app's own options say."""
        self._is_hasty = seconds < self._timeout_s * _FIRST_TRY
        self.connect_timeout = seconds
        names = ("socket_connect_timeout", "socket_timeout")
        limited = {name: min(self._options[name], seconds) for name in names if self._options.get(name) is not None}
        self.transport_options = {**self._options, **limited}
