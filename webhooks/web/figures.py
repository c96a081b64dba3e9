"""Figures of all webhooks, counted a slice of time after another and remembered.

No page waits for a day of logs to be read: what is counted is shown, and the page says how far back that goes.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from threading import Lock
from typing import Any

import pymongo
from bson import ObjectId

from webhooks.rules.figures import Counts, Figures, summarize
from webhooks.store.statistics import StatisticsStore
from webhooks.web.base import get_stores

logger = logging.getLogger(__name__)

#: A slice of time.
SLICE = timedelta(minutes=5)
#: Spans that people choose among.
SPANS: Mapping[str, timedelta] = {"hour": timedelta(hours=1), "day": timedelta(days=1)}
#: Parts of the small chart.
STRETCHES: Mapping[str, int] = {"hour": 12, "day": 24}
#: How late a log may be written: a slice is counted again until it is so old.
_LATE = timedelta(minutes=10)
#: Seconds for which a count of such a slice holds.
_FRESH_S = 5.0
#: Seconds that a page waits for figures to be counted, and that one count may take.
_WAIT_S = 0.08
_COUNT_S = 60.0


@dataclass(frozen=True, slots=True)
class _Slice:
    counts: Mapping[ObjectId, Counts]
    #: Whether nothing can be added to it any more.
    is_final: bool
    counted_at: float


class FigureCache:
    """Counts and remembers."""

    def __init__(self, store: StatisticsStore) -> None:
        self._store = store
        self._slices: dict[datetime, _Slice] = {}
        self._counting = Lock()

    def refresh(self, span: str, present: datetime) -> None:
        """Count what is missing or old, the newest first; returns at once while another thread does so.

        Raises:
            StoreUnavailable: MongoDB cannot serve us now; what was counted is remembered.
        """
        if not self._counting.acquire(blocking=False):
            return
        try:
            for start in _starts(SPANS[span], present):
                known = self._slices.get(start)
                if known is not None and (known.is_final or time.monotonic() - known.counted_at < _FRESH_S):
                    continue
                counts = self._store.count(start, start + SLICE)
                self._slices[start] = _Slice(counts, present > start + SLICE + _LATE, time.monotonic())
            oldest = present - max(SPANS.values()) - SLICE
            for start in [one for one in self._slices if one < oldest]:
                del self._slices[start]
        finally:
            self._counting.release()

    def summarize(self, webhook_ids: Sequence[ObjectId], span: str, present: datetime) -> dict[ObjectId, Figures]:
        """Return the figures of webhooks, of what is counted."""
        slices = [self._slices.get(start) for start in reversed(_starts(SPANS[span], present))]
        nothing = summarize([None] * len(slices), STRETCHES[span])
        attempted = {one for part in slices if part is not None for one in part.counts}
        return {
            one: summarize([part.counts.get(one) if part is not None else None for part in slices], STRETCHES[span])
            if one in attempted
            else nothing
            for one in webhook_ids
        }

    def counted_since(self, span: str, present: datetime) -> datetime | None:
        """Return how far back is counted, where that is not the whole span; now, where nothing is."""
        for start in _starts(SPANS[span], present):
            if start not in self._slices:
                return min(start + SLICE, present)
        return None


def _starts(span: timedelta, present: datetime) -> list[datetime]:
    """Return the slices of a span, the newest first."""
    seconds = SLICE.total_seconds()
    newest = datetime.fromtimestamp(present.timestamp() // seconds * seconds, present.tzinfo)
    return [newest - number * SLICE for number in range(int(span / SLICE))]


@cache
def _counter() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="webhooks-figures")


@cache
def get_figures() -> FigureCache:
    """Return this process's figures."""
    return FigureCache(get_stores().statistics)


async def count_figures(span: str, present: datetime) -> None:
    """Have figures counted beside Flower's loop, and wait for them a moment."""
    figures = get_figures()  # here, as stores are opened by Flower's loop alone

    def count() -> None:
        with pymongo.timeout(_COUNT_S):
            figures.refresh(span, present)

    counting = asyncio.get_running_loop().run_in_executor(_counter(), count)
    counting.add_done_callback(_note_failure)
    await asyncio.wait([counting], timeout=_WAIT_S)


def _note_failure(counting: "asyncio.Future[Any]") -> None:
    if not counting.cancelled() and (error := counting.exception()) is not None:
        logger.warning("figures of webhooks are not counted: %s", error)
