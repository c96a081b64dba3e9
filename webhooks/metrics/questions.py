"""Queries to the broker, MongoDB and workers that end within seconds, also when the other side hangs."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from kombu.connection import Connection

from webhooks.errors import InvalidSettings, StoreUnavailable, WebhooksError
from webhooks.producer.app import app
from webhooks.rules.remedies import BROKER_ERRORS, explain_broker, explain_database

_T = TypeVar("_T")

#: Seconds for one answer of the broker.
_BROKER_TIMEOUT_S = 2
#: Seconds for a whole query; DNS look-ups, for example, have no timeout of their own.
_QUERY_TIMEOUT_S = 6


class NoAnswer(WebhooksError):
    """A query failed; the text has the reason and the remedy."""


class Query(Generic[_T]):
    """A query that runs in a daemon thread, so that the process can end before it does."""

    def __init__(self, ask: Callable[[], _T]) -> None:
        self._answer: Future[_T] = Future()
        threading.Thread(target=self._run, args=(ask,), daemon=True).start()

    def _run(self, ask: Callable[[], _T]) -> None:
        try:
            self._answer.set_result(ask())
        except Exception as error:  # noqa: BLE001 - `result` raises it
            self._answer.set_exception(_no_answer(error))

    def result(self, timeout_s: float = _QUERY_TIMEOUT_S) -> _T:
        """Wait for the answer.

        Raises:
            NoAnswer: the query failed, or takes too long.
        """
        try:
            return self._answer.result(timeout_s)
        except TimeoutError:
            raise NoAnswer(f"no answer within {timeout_s:g} s") from None


def _no_answer(error: Exception) -> NoAnswer:
    """Explain an error; only known errors are quoted, because others may contain a password."""
    if isinstance(error, NoAnswer | InvalidSettings):
        return NoAnswer(str(error))
    if isinstance(error, StoreUnavailable):
        return NoAnswer(explain_database(error))
    if isinstance(error, BROKER_ERRORS):
        return NoAnswer(explain_broker(error))
    return NoAnswer(type(error).__name__)


@contextmanager
def connect(url: str) -> Iterator[Connection]:
    """Connect to the broker with short timeouts.

    Raises:
        NoAnswer: the URL is not valid.
        Exception: one of `BROKER_ERRORS`.
    """
    timeouts = {"socket_connect_timeout": _BROKER_TIMEOUT_S, "socket_timeout": _BROKER_TIMEOUT_S}
    try:
        # The app's connection class knows the lanes.
        connection = app.connection_for_read(
            url,
            connect_timeout=_BROKER_TIMEOUT_S,
            transport_options=timeouts if url.startswith("redis") else {},
        )
        connection.transport_cls  # noqa: B018 - raises for an unknown scheme
    except (ValueError, KeyError, ImportError):
        raise NoAnswer("WEBHOOKS_BROKER_URL is not a broker URL that can be used here") from None
    with connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=_BROKER_TIMEOUT_S)
        yield connection


def inspect_workers(url: str, what: str, timeout_s: float) -> dict[str, Any]:
    """Send an inspect command to all workers, and wait the whole timeout: their number is not known.

    Args:
        url: the broker's.
        what: name of one of Celery's inspect commands.
        timeout_s: seconds to wait for answers.

    Returns:
        The answers by worker's name, also those of other applications' workers.
    """
    with connect(url) as connection:
        inspect: Any = app.control.inspect(timeout=timeout_s, connection=connection)
        return inspect._request(what) or {}
