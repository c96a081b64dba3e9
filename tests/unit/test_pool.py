"""The pool's threads outlive what they meet, or the worker ends: it must not hold its messages and do nothing."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from celery.app.task import Context
from celery.platforms import EX_FAILURE
from celery.worker import state

import webhooks.worker.tasks  # noqa: F401 - registers them
from webhooks.delivery.outcomes import Failed
from webhooks.errors import Requeue
from webhooks.worker import pool
from webhooks.worker.inplace import InPlaceMessage


def test_defect_that_ends_a_thread_of_the_pool_ends_the_worker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(state, "should_stop", None)

    def fail() -> None:
        raise ValueError("a defect")

    thread = pool._thread(fail, "test")
    thread.start()
    thread.join(10)
    assert state.should_stop == EX_FAILURE


def test_attempt_that_is_terminated_before_it_begins_does_not_end_its_thread():
    """Celery has the pool end it when it begins, and a thread cannot be ended."""
    batch_pool: Any = pool.BatchPool.__new__(pool.BatchPool)
    job = pool.Job(print, ("webhooks.send", "msg_1", {}), print, batch_pool.terminate_job)
    with pytest.raises(NotImplementedError):
        batch_pool.terminate_job(1)
    job.begin()


@pytest.mark.parametrize(("error", "released"), [(Requeue("too late"), [["claim"]]), (ValueError("a defect"), [[]])])
def test_claim_of_a_message_that_goes_back_is_released_before(
    error: Exception, released: list[Any], monkeypatch: pytest.MonkeyPatch
):
    """Without this another worker that takes the message finds it claimed, until the claim has run out."""
    seen: list[Any] = []
    monkeypatch.setattr(pool, "get_services", object)
    monkeypatch.setattr(pool, "record", lambda *_: set())
    monkeypatch.setattr(pool, "release", lambda _, claims: seen.append(claims))
    job = pool.Job(lambda *_: (1, None, 0.0), ("webhooks.send", "msg_1", {}), lambda _: seen.append("end"), print)
    job.outcome = Failed(error)
    batch_pool: Any = pool.BatchPool(limit=1)
    batch_pool._record([pool._Send(job, None, SimpleNamespace(claim="claim"))])  # pyright: ignore[reportArgumentType]
    assert seen == [*released, "end"]


def test_end_of_a_first_attempt_frees_it_without_the_garbage_collector():
    """A job refers to its request, and that to its message: a cycle would keep a delivery until the collector runs."""
    delivery = SimpleNamespace(delivery_id="msg_1", label="", lane="c/w", rate=None)
    message: Any = InPlaceMessage(delivery, None, {"id": "event"}, print, print)  # pyright: ignore[reportArgumentType]
    message.put_job(pool.Job(print, (message,), print, print))
    job, gone = message.take_job(), weakref.ref(message)
    assert message.take_job() is None
    gc.disable()
    try:
        del message, job
        assert gone() is None
    finally:
        gc.enable()


def test_task_sees_the_headers_that_celery_would_find():
    """They are found by us, as a retry inherits them: its lane, and what the event's producer set."""
    given = {"lang": "py", "id": "msg_1", "retries": 0, "webhooks_lane": "c/w", "traceparent": "00-1", "args": []}
    seen: list[Any] = []
    job = pool.Job(
        lambda *args: seen.append(Context(args[2]).headers), ("webhooks.send", "msg_1", {**given}), print, print
    )
    job.trace()
    assert seen == [Context(given).headers] == [{"webhooks_lane": "c/w", "traceparent": "00-1"}]


@pytest.mark.parametrize(
    ("in_flight", "limit", "is_ordered", "is_gathered"),
    [
        pytest.param(1, 256, False, True, id="idle"),
        pytest.param(100, 100, False, True, id="busy"),
        pytest.param(100, 100, True, True, id="busy, ordered"),
        pytest.param(1, 256, True, False, id="idle, but the next of its line waits for the record"),
        pytest.param(2, 2, False, False, id="the next attempt waits for the slot"),
    ],
)
def test_ended_attempts_are_gathered_before_they_are_recorded(
    in_flight: int, limit: int, is_ordered: bool, is_gathered: bool, monkeypatch: pytest.MonkeyPatch
):
    batch_pool: Any = pool.BatchPool(limit=limit)
    batch_pool._slots.take(in_flight)
    send = SimpleNamespace(attempt=SimpleNamespace(delivery=SimpleNamespace(is_ordered=is_ordered)))
    recorded: list[int] = []
    monkeypatch.setattr(batch_pool, "_record", lambda ended: (recorded.append(len(ended)), end_another()))
    others = [send, pool._END]

    def end_another(_: float = 0) -> None:
        if others:
            batch_pool._ended.put(others.pop(0))

    monkeypatch.setattr(pool.time, "sleep", end_another)
    batch_pool._ended.put(send)
    batch_pool._record_all()
    assert recorded == ([2] if is_gathered else [1, 1])
