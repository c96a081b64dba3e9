"""The state of the whole system, as broker and MongoDB tell it within seconds; remembered for a moment."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import pymongo

from webhooks.config import get_settings
from webhooks.metrics.broker import BrokerOverview, read_broker
from webhooks.metrics.questions import NoAnswer, Query
from webhooks.store.overview import Overview, OverviewStore

_T = TypeVar("_T")

#: Seconds for which an answer is shown again, at least: two Prometheus servers, and an outage, ask once. An answer that
#: took long, as with very many lanes, is shown for this many times that, and at most so long.
_FRESH_S = 5.0
_TIMES_TAKEN = 100
_MOST_FRESH_S = 60.0
#: Seconds for both servers' answers. Less than Prometheus's 10 s for a scrape.
_WITHIN_S = 3.0


@dataclass(frozen=True, slots=True)
class System:
    """What was told; None for a server that did not answer."""

    broker: BrokerOverview | None
    database: Overview | None


class SystemReader:
    """Asks both servers at one time."""

    def __init__(self, store: OverviewStore) -> None:
        self._store = store
        self._lock = Lock()
        self._ask_at = 0.0
        self._system: System | None = None

    def read(self, lanes: Callable[[], Mapping[str, str]] = dict) -> System:
        """Return the state of the system, at most some seconds old.

        Args:
            lanes: returns the lanes to look at, as for `read_broker`.
        """
        with self._lock:
            if self._system is None or time.monotonic() > self._ask_at:
                begun = time.monotonic()
                self._system = self._ask(lanes())
                is_whole = self._system.broker is not None and self._system.database is not None
                took_s = time.monotonic() - begun if is_whole else 0.0
                self._ask_at = time.monotonic() + max(_FRESH_S, min(_TIMES_TAKEN * took_s, _MOST_FRESH_S))
            return self._system

    def _ask(self, lanes: Mapping[str, str]) -> System:
        give_up_at = time.monotonic() + _WITHIN_S
        database = Query(self._ask_database)
        broker = Query(lambda: read_broker(get_settings().broker_url, lanes))
        return System(_result(broker, give_up_at), _result(database, give_up_at))

    def _ask_database(self) -> Overview:
        with pymongo.timeout(_WITHIN_S):
            return self._store.read()


def _result(query: Query[_T], give_up_at: float) -> _T | None:
    try:
        return query.result(max(0.0, give_up_at - time.monotonic()))
    except NoAnswer:
        return None
