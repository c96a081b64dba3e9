"""A message is never dropped: what asks for its message back gets it, and a defect becomes a dead letter."""

import pytest
from celery.exceptions import Reject

from webhooks.errors import Requeue
from webhooks.producer.app import app
from webhooks.producer.durable import DurableTask


def test_message_that_is_wanted_back_is_requeued_and_not_retried(monkeypatch: pytest.MonkeyPatch):
    task = DurableTask()
    task.bind(app)

    def refuse() -> None:
        raise Requeue("MongoDB is away")

    monkeypatch.setattr(task, "run", refuse)
    with pytest.raises(Reject) as error:
        task()
    assert error.value.requeue
    assert "MongoDB is away" in str(error.value)
