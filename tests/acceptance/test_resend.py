"""Deliveries that an operator sends once more, and events that an operator makes, with a real worker and receiver."""

from bson import ObjectId

from tests.acceptance.conftest import Stack, body_of
from tests.lab.receiver import Receiver, reply
from tests.lab.samples_data import read_sample
from tests.lab.worker import wait_until

EVENT = read_sample("event-task-create")


def operate(stack: Stack, webhook_id: ObjectId, expression: str) -> None:
    """Do what the pages in Flower do, in a process of its own as they have one."""
    stack.run_producer(f"""
from bson import ObjectId
from webhooks.delivery import operate
from webhooks.producer.app import app
from webhooks.store.stores import Stores
app.loader.import_default_modules()
stores = Stores()
webhook = stores.webhooks.get(ObjectId("{webhook_id}"))
{expression}
stores.close()
""")


def test_resent_delivery_arrives_again_with_the_same_id_and_is_marked_in_its_log(stack: Stack):
    stack.more["WEBHOOKS_MAX_RETRIES"] = "0"
    with Receiver() as receiver:
        receiver.then(reply(500, b"down"))
        webhook_id = stack.add_webhook(receiver.url)
        stack.start_worker()
        event_id = stack.send_task(EVENT)
        (failed,) = stack.logs(1)
        delivery_id = failed["attempt"]["delivery_id"]
        log = f'stores.logs.get_many([ObjectId("{failed["_id"]}")])[0]'
        operate(stack, webhook_id, f'operate.resend(stores, webhook, {log}.event, "{event_id}", "{delivery_id}")')
        again = stack.logs(2)[1]
        first, second = wait_until(lambda: receiver.requests if len(receiver.requests) > 1 else [], "sent again")
    assert first.body == second.body == body_of(EVENT)
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == delivery_id
    assert again["attempt"]["delivery_id"] == f"{delivery_id}~1"
    assert (again["status"], again["retry"], again["attempt"]["event_id"]) == (200, 0, event_id)
    wait_until(lambda: stack.database["deliveries"].count_documents({}) == 0, "ended")


def test_test_event_reaches_its_webhook_alone(stack: Stack):
    with Receiver() as receiver, Receiver() as other:
        webhook_id = stack.add_webhook(receiver.url, context={"taskGroup": str(ObjectId())})
        stack.add_webhook(other.url, context={})
        stack.start_worker()
        operate(stack, webhook_id, "operate.send_test(stores, webhook)")
        (log,) = stack.logs(1)
        assert log["event"]["data"]["test"] is True
        assert log["subscription"] == webhook_id
    assert not other.requests


def test_job_resends_what_failed_and_leaves_what_arrived(stack: Stack):
    stack.more["WEBHOOKS_MAX_RETRIES"] = "0"
    with Receiver() as receiver:
        receiver.then(reply(500, b"down"), reply(500, b"down"))
        stack.add_webhook(receiver.url)
        stack.start_worker()
        for number in range(3):
            stack.send_task(EVENT)
            stack.logs(number + 1)
        failed = [log["attempt"]["delivery_id"] for log in stack.logs(3) if log["status"] == 500]
        out = stack.run_command("resend", "--failed", "--since", "1h", "--yes")
        assert "done. 2 of 2 deliveries resent." in out
        again = stack.logs(5)[3:]
    assert [request.headers["webhook-id"] for request in receiver.requests[3:]] == failed
    (job,) = stack.database["resendjobs"].find()
    assert {log["attempt"]["delivery_id"] for log in again} == {f"{one}~{job['_id']}" for one in failed}
    assert all(log["status"] == 200 for log in again)
