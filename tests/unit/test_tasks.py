"""What the tasks' messages show of themselves, without a broker."""

from typing import Any, cast

import pytest
from celery import Task

from webhooks.config import get_settings
from webhooks.tasks import app, write_log

CANARY = "canary-payload"


@pytest.mark.parametrize("described", ["log 1", None])
def test_task_that_meets_a_defect_is_queued_again_without_showing_its_payload(
    monkeypatch: pytest.MonkeyPatch, described: str | None
):
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", "memory://")
    get_settings.cache_clear()
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(
        app.amqp, "send_task_message", lambda producer, name, message, **_: sent.append(message.headers), raising=False
    )
    task = cast("Task", write_log)
    task.push_request(
        id="1", args=(CANARY,), kwargs={}, retries=0, called_directly=False, is_eager=False, argsrepr=described,
        delivery_info={"routing_key": "webhooks.send"}, headers={},
    )  # fmt: skip
    try:
        with pytest.raises(BaseException, match="Retry"):
            task(CANARY)
    finally:
        task.pop_request()
        get_settings.cache_clear()
    (headers,) = sent
    assert headers["argsrepr"] == (described or "…")
    assert CANARY not in str(headers)
