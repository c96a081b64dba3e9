"""Many callers' operations in one batch: each gets its own result, and waits for its own."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from webhooks.batching import Batcher


def test_lone_caller_gets_its_result():
    batcher = Batcher[int, int]("test", lambda items: [item * 2 for item in items], 10)
    assert batcher(3) == 6


def test_callers_share_a_batch_while_another_is_carried_out():
    sizes: list[int] = []
    first_began, may_end = threading.Event(), threading.Event()

    def carry_out(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        first_began.set()
        assert may_end.wait(10)
        return list(items)

    batcher = Batcher[int, int]("test", carry_out, 4)
    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(batcher, 0)]
        assert first_began.wait(10)
        futures += [pool.submit(batcher, number) for number in range(1, 11)]
        while len(batcher._waiting) < 10:
            assert not may_end.wait(0.01)
        may_end.set()
        assert [future.result(10) for future in futures] == list(range(11))
    assert sizes == [1, 4, 4, 2]


def test_error_of_one_item_is_its_callers_alone():
    batcher = Batcher[int, int]("test", lambda items: [ValueError("odd") if item % 2 else item for item in items], 10)
    with ThreadPoolExecutor(2) as pool:
        even, odd = pool.submit(batcher, 2), pool.submit(batcher, 3)
        assert even.result(10) == 2
        with pytest.raises(ValueError, match="odd"):
            odd.result(10)


def test_error_of_a_batch_is_everybodys_and_the_next_batch_goes_on():
    failing = threading.Event()
    failing.set()

    def carry_out(items: Sequence[int]) -> list[int]:
        if failing.is_set():
            raise RuntimeError("away")
        return list(items)

    batcher = Batcher[int, int]("test", carry_out, 10)
    with pytest.raises(RuntimeError, match="away"):
        batcher(1)
    failing.clear()
    assert batcher(1) == 1
