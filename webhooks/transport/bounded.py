"""A connection whose publishing has a total timeout.

kombu limits the number of tries instead, each up to a socket timeout, and does not limit the first connection at all.
So a call in a service could block for minutes.
"""

import time
from collections.abc import Callable
from typing import Any, ClassVar

from kombu import connection
from kombu.exceptions import OperationalError

#: Pause between tries.
_PAUSE_S = 0.2
#: Fraction of the timeout for the first try, so that a second one follows if the server hangs.
_FIRST_TRY = 0.5
#: Minimum timeout of a try.
_MIN_TRY_S = 0.05


class BoundedConnection(connection.Connection):
    """Tries to publish for ``connect_timeout`` seconds in total."""

    #: Set in a worker, which uses kombu's behaviour: for it, waiting is cheaper than publishing again.
    is_patient: ClassVar[bool] = False

    #: By `time.monotonic`; None: ``connect_timeout`` after the call of `ensure`'s function.
    give_up_at: float | None = None

    #: Whether this connection has a shortened timeout, so that the next call needs a new one.
    _is_hasty = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timeout_s: float = self.connect_timeout
        self._options = self.transport_options
        if not self.is_patient:
            self._limit_try(self._timeout_s * _FIRST_TRY)

    def ensure(self, obj: Any, fun: Callable[..., Any], *args: Any, **policy: Any) -> Callable[..., Any]:
        """Wrap a function so that it is retried while the broker is unavailable; see kombu's `Connection.ensure`.

        Args:
            obj: gets ``revive(channel)`` after a new connection.
            fun: the function; the wrapper raises OperationalError after the timeout.
            args: for kombu, in a worker.
            policy: for kombu, in a worker.
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
        # One try: `ensured` repeats it within its timeout.
        return super()._extract_failover_opts() if self.is_patient else {"max_retries": 0}

    def _drop(self, seconds: float) -> None:
        """Drop the connection and set the timeout of the next one."""
        self.collect()
        self._limit_try(seconds)

    def _limit_try(self, seconds: float) -> None:
        """Set the timeouts of the next connection, at most those of the app's options."""
        self._is_hasty = seconds < self._timeout_s * _FIRST_TRY
        self.connect_timeout = seconds
        names = ("socket_connect_timeout", "socket_timeout")
        limited = {name: min(self._options[name], seconds) for name in names if self._options.get(name) is not None}
        self.transport_options = {**self._options, **limited}
