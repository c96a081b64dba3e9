"""Deliveries that an operator sends once more, and events that an operator makes, with a real worker and receiver."""

import pytest
from bson import ObjectId

from tests.acceptance.conftest import Stack, body_of
from tests.lab.receiver import Receiver, reply
from tests.lab.samples_data import read_sample
from tests.lab.worker import wait_until
from webhooks.delivery import operate
from webhooks.producer.app import app
from webhooks.store.stores import Stores

EVENT = read_sample("event-task-create")


@pytest.fixture
def stores(stack: Stack, monkeypatch: pytest.MonkeyPatch):
    """The stack's collections, as the pages in Flower open them."""
    for name, value in stack.settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(app.conf, "broker_url", stack.redis_url)
    app.loader.import_default_modules()
    stores = Stores()
    yield stores
    stores.close()


def test_resent_delivery_arrives_again_with_the_same_id_and_is_marked_in_its_log(stack: Stack, stores: Stores):
    stack.more["WEBHOOKS_MAX_RETRIES"] = "0"
    with Receiver() as receiver:
        receiver.then(reply(500, b"down"))
        webhook_id = stack.add_webhook(receiver.url)
        stack.start_worker()
        event_id = stack.send_task(EVENT)
        (failed,) = stack.logs(1)
        webhook = stores.webhooks.get(webhook_id)
        assert webhook is not None
        (log,) = stores.logs.get_many([failed["_id"]])
        operate.resend(stores, webhook, log.event, event_id, failed["attempt"]["delivery_id"])
        again = stack.logs(2)[1]
        first, second = wait_until(lambda: receiver.requests if len(receiver.requests) > 1 else [], "sent again")
    assert first.body == second.body == body_of(EVENT)
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == failed["attempt"]["delivery_id"]
    assert again["attempt"]["delivery_id"] == failed["attempt"]["delivery_id"] + "~1"
    assert (again["status"], again["retry"], again["attempt"]["event_id"]) == (200, 0, event_id)
    wait_until(lambda: stack.database["deliveries"].count_documents({}) == 0, "ended")


def test_test_event_reaches_its_webhook_alone(stack: Stack, stores: Stores):
    with Receiver() as receiver, Receiver() as other:
        webhook = stores.webhooks.get(stack.add_webhook(receiver.url, context={"taskGroup": str(ObjectId())}))
        stack.add_webhook(other.url, context={})
        stack.start_worker()
        assert webhook is not None
        operate.send_test(stores, webhook)
        (log,) = stack.logs(1)
        assert log["event"]["data"]["test"] is True
        assert log["subscription"] == webhook.id
    assert not other.requests
