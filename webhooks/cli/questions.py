"""Questions to broker, MongoDB and workers that end within seconds, whatever is away, paused or slow."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from kombu.connection import Connection

from webhooks.errors import InvalidSettings, StoreUnavailable, WebhooksError
from webhooks.producer.app import app
from webhooks.rules.remedies import BROKER_ERRORS, explain_broker, explain_database

_T = TypeVar("_T")

#: Seconds for one answer of the broker.
BROKER_TIMEOUT_S = 2
#: Seconds for a part as a whole. Look-ups of host names, for one, have no deadline of their own.
_PART_TIMEOUT_S = 6


class NoAnswer(WebhooksError):
    """A part cannot be asked; the text says why, and what to do about it."""


class Query(Generic[_T]):
    """A question that is being asked, in a thread that nobody has to wait for."""

    def __init__(self, ask: Callable[[], _T]) -> None:
        self._answer: Future[_T] = Future()
        threading.Thread(target=self._ask, args=(ask,), daemon=True).start()

    def _ask(self, ask: Callable[[], _T]) -> None:
        try:
            self._answer.set_result(ask())
        except NoAnswer as error:
            self._answer.set_exception(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the answer says so
            self._answer.set_exception(_no_answer(error))

    def result(self, timeout_s: float = _PART_TIMEOUT_S) -> _T:
        """Wait for the answer.

        Raises:
            NoAnswer: there is none, or not in time.
        """
        try:
            return self._answer.result(timeout_s)
        except TimeoutError:
            raise NoAnswer(f"no answer within {timeout_s:g} s") from None


def _no_answer(error: Exception) -> NoAnswer:
    """Put a foreign error into words.

    Only the texts of errors that are known are repeated: others, such as those about a URL, may hold a password.
    """
    if isinstance(error, InvalidSettings):
        return NoAnswer(str(error))
    if isinstance(error, StoreUnavailable):
        return NoAnswer(explain_database(error))
    if isinstance(error, BROKER_ERRORS):
        return NoAnswer(explain_broker(error))
    return NoAnswer(type(error).__name__)


def connect(url: str) -> Connection:
    """Make a connection to the broker that gives up soon.

    Raises:
        NoAnswer: the URL cannot be used.
    """
    deadlines = {"socket_connect_timeout": BROKER_TIMEOUT_S, "socket_timeout": BROKER_TIMEOUT_S}
    try:
        # The app's own kind of connection: it knows what waits in lanes.
        connection = app.connection_for_read(
            url,
            connect_timeout=BROKER_TIMEOUT_S,
            transport_options=deadlines if url.startswith("redis") else {},
        )
        connection.transport_cls  # noqa: B018 - finds out whether the scheme is known
    except (ValueError, KeyError, ImportError):
        raise NoAnswer("WEBHOOKS_BROKER_URL is not a broker URL that can be used here") from None
    return connection


def inspect_workers(url: str, what: str, timeout_s: float) -> dict[str, Any]:
    """Ask all workers on the broker; all of the time passes, as nobody knows how many there are.

    Args:
        url: the broker's.
        what: name of an inspect command, Celery's or ours.
        timeout_s: seconds in which they have to answer.

    Returns:
        By worker, what it answered. Workers of other applications may be among them.
    """
    with connect(url) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_TIMEOUT_S)
        inspect: Any = app.control.inspect(timeout=timeout_s, connection=connection)
        return inspect._request(what) or {}
