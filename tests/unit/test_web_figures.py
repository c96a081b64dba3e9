from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from bson import ObjectId

from webhooks.errors import StoreUnavailable
from webhooks.rules.figures import Counts
from webhooks.web.figures import SLICE, FigureCache

WEBHOOK = ObjectId("62685990d918fb5557f9f992")
NOON = datetime(2026, 5, 5, 12, 2, tzinfo=UTC)


class Store:
    """Counts one attempt in each slice, and remembers which it was asked for."""

    def __init__(self) -> None:
        self.asked: list[datetime] = []
        self.fails_after = 1_000

    def count(self, since: datetime, until: datetime) -> Mapping[ObjectId, Counts]:
        if len(self.asked) >= self.fails_after:
            raise StoreUnavailable("away")
        assert until - since == SLICE
        self.asked.append(since)
        return {WEBHOOK: Counts(1, 0, None, {0: 1})}


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def cache(store: Store) -> FigureCache:
    return FigureCache(cast("Any", store))


def attempts(cache: FigureCache, span: str, present: datetime) -> int:
    return cache.summarize([WEBHOOK], span, present)[WEBHOOK].attempts


def test_span_is_counted_slice_by_slice_and_the_newest_first(cache: FigureCache, store: Store):
    cache.refresh("hour", NOON)
    assert store.asked[:2] == [datetime(2026, 5, 5, 12, 0, tzinfo=UTC), datetime(2026, 5, 5, 11, 55, tzinfo=UTC)]
    assert attempts(cache, "hour", NOON) == len(store.asked) == 12
    assert cache.counted_since("hour", NOON) is None


def test_slice_that_nothing_can_be_added_to_is_counted_once(cache: FigureCache, store: Store):
    cache.refresh("hour", NOON)
    cache.refresh("hour", NOON + timedelta(hours=2))
    old = [start for start in store.asked if start <= NOON - timedelta(minutes=20)]
    assert len(old) == len(set(old))


def test_what_is_counted_is_shown_though_the_rest_is_missing(cache: FigureCache, store: Store):
    store.fails_after = 3
    assert cache.counted_since("hour", NOON) == NOON
    with pytest.raises(StoreUnavailable):
        cache.refresh("hour", NOON)
    assert attempts(cache, "hour", NOON) == 3
    assert cache.counted_since("hour", NOON) == datetime(2026, 5, 5, 11, 50, tzinfo=UTC)
    store.fails_after = 1_000
    cache.refresh("hour", NOON)
    assert cache.counted_since("hour", NOON) is None


def test_slices_of_days_ago_are_forgotten(cache: FigureCache, store: Store):
    cache.refresh("hour", NOON)
    cache.refresh("hour", NOON + timedelta(days=3))
    assert attempts(cache, "hour", NOON) == 0
