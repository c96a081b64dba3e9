"""The operators' commands on workers that run: pause, resume, skip and deactivate hold for all of them."""

import pytest
from bson import ObjectId

from tests.acceptance.conftest import Stack
from tests.lab.receiver import Receiver, reply
from tests.lab.samples_data import read_sample
from tests.lab.worker import wait_until

EVENT = read_sample("event-task-create")


def numbers(receiver: Receiver) -> list[int]:
    return [request.json()["number"] for request in receiver.requests]


def send(stack: Stack, first: int, count: int) -> None:
    for number in range(first, first + count):
        stack.send_task({**EVENT, "number": number})


def wait_until_kept(stack: Stack, count: int) -> None:
    wait_until(lambda: stack.database["deliveries"].count_documents({"held": True}) == count, f"{count} kept")


def state_in_list(stack: Stack, webhook_id: ObjectId) -> str:
    lines = stack.run_command("list", "--all").splitlines()
    return next(line.split()[2] for line in lines if str(webhook_id) in line)


def test_pause_holds_on_all_workers_and_resume_loses_nothing(stack: Stack) -> None:
    with Receiver() as receiver:
        webhook_id = stack.add_webhook(receiver.url)
        for _ in range(2):
            stack.start_worker()
        send(stack, 0, 5)
        receiver.wait_for(5)
        assert "is paused" in stack.run_command("pause", str(webhook_id), "--reason", "maintenance")
        send(stack, 5, 20)
        wait_until_kept(stack, 20)
        assert len(receiver.requests) == 5
        assert state_in_list(stack, webhook_id) == "paused"
        assert "pending       20 held, 0 to send" in stack.run_command("show", str(webhook_id))
        assert "as fast as its endpoint accepts them" in stack.run_command("drain", str(webhook_id))
        receiver.wait_for(25)
        wait_until(lambda: state_in_list(stack, webhook_id) == "active", "active again")
    assert sorted(numbers(receiver)) == list(range(25))


def test_stopped_line_goes_on_in_order_after_a_skip(stack: Stack) -> None:
    with Receiver(default=reply(500)) as receiver:
        webhook_id = stack.add_webhook(receiver.url, ordered=True, on_exhausted="stop")
        stack.start_worker(WEBHOOKS_MAX_RETRIES="1", WEBHOOKS_RETRY_DELAY_S="0.2")
        for number in range(5):
            send(stack, number, 1)
            wait_until(lambda n=number: stack.database["deliveries"].count_documents({}) == n + 1, "accepted")
        wait_until(lambda: state_in_list(stack, webhook_id) == "stopped", "stopped")
        assert numbers(receiver) == [0, 0]
        receiver.default = reply()
        assert "skipped msg_" in stack.run_command("skip", str(webhook_id))
        receiver.wait_for(6)
    assert numbers(receiver) == [0, 0, 1, 2, 3, 4]
    [skipped] = stack.logs(1, 30, **{"attempt.error_kind": "skipped"})
    assert (skipped["response"], skipped["event"]["number"]) == ("skipped by an operator", 0)


@pytest.mark.slow
def test_deactivate_ends_what_is_kept_with_a_log_and_no_request(stack: Stack) -> None:
    with Receiver() as receiver:
        webhook_id = stack.add_webhook(receiver.url)
        stack.start_worker()
        stack.run_command("pause", str(webhook_id))
        send(stack, 0, 10)
        wait_until_kept(stack, 10)
        stack.run_command("deactivate", str(webhook_id))
        stack.logs(10, 30, **{"attempt.error_kind": "webhook_inactive"})
        wait_until(lambda: stack.database["deliveries"].count_documents({}) == 0, "settled")
        assert receiver.requests == []
        stack.run_command("activate", str(webhook_id))
        wait_until(lambda: state_in_list(stack, webhook_id) == "active", "active")
