"""The judge must condemn what is wrong: a matrix that cannot fail shows nothing."""

from dataclasses import replace
from typing import Any

import pytest

from tests.faults.judge import Evidence, Logged, Receipts, judge

A, B = (1, "/0"), (2, "/1")
GOOD = Evidence(
    expected={A, B},
    receipts={A: Receipts(ok=1, ids={"msg_a"}), B: Receipts(ok=1, failed=1, ids={"msg_b"})},
    logs={A: Logged(succeeded=1), B: Logged(succeeded=1, failed=[0])},
    dead=(),
    owed=(),
    queued=0,
    max_retries=3,
)


def faults(bound: int = 0, underlogged_why: str = "", **changes: object) -> list[str]:
    return judge(replace(GOOD, **changes)).faults(bound, underlogged_why)  # pyright: ignore[reportArgumentType]


def faults_with_b(receipts: Receipts, logged: Logged, bound: int = 0, **changes: Any) -> list[str]:
    return faults(bound, receipts={**GOOD.receipts, B: receipts}, logs={**GOOD.logs, B: logged}, **changes)


def test_judge_of_deliveries_that_came_once_finds_nothing():
    assert faults() == []


def test_judge_of_nothing_accepted_finds_that_nothing_is_shown():
    assert faults(expected=()) == ["nothing was accepted, so nothing is shown"]


def test_judge_of_a_delivery_that_never_came_finds_it_lost():
    assert faults(receipts={A: GOOD.receipts[A]}, logs={A: GOOD.logs[A]}) == ["1 lost: [(2, '/1')]"]


@pytest.mark.parametrize("failed", [[], [0], [0, 1, 2], [1, 2, 3], [0, 0, 1, 2]], ids=str)
def test_judge_of_a_delivery_without_all_its_failed_logs_finds_it_lost(failed: list[int]):
    receipts = {A: GOOD.receipts[A], B: Receipts(failed=len(failed))}
    assert faults(receipts=receipts, logs={A: GOOD.logs[A], B: Logged(failed=failed)}) == ["1 lost: [(2, '/1')]"]


def test_judge_of_a_delivery_with_four_failed_logs_finds_nothing():
    verdict = judge(
        replace(
            GOOD,
            receipts={A: GOOD.receipts[A], B: Receipts(failed=4)},
            logs={A: GOOD.logs[A], B: Logged(failed=[0, 1, 2, 3])},
        )
    )
    assert verdict.faults(0) == []
    assert verdict.given_up == 1


def test_judge_of_a_dead_letter_finds_it_but_not_lost():
    """A worker's clock an hour late once let the clean-up delete an event: its deliveries became dead letters."""
    found = faults(receipts={A: GOOD.receipts[A]}, logs={A: GOOD.logs[A]}, dead=[B])
    assert found == ["1 became dead letters, though no message was at fault"]


def test_judge_of_a_delivery_that_is_still_owed_finds_it_stuck_not_lost():
    assert faults(receipts={A: GOOD.receipts[A]}, logs={A: GOOD.logs[A]}, owed=[B]) == ["1 stuck"]


def test_judge_of_messages_that_are_left_finds_them_stuck():
    assert faults(queued=2) == ["2 stuck"]


RECEIVED_AGAIN = pytest.mark.parametrize(
    "receipts",
    [Receipts(ok=2, failed=1, ids={"msg_b"}), Receipts(ok=1, failed=2, ids={"msg_b"})],
    ids=["received twice", "failed again without a log of its own"],
)


@RECEIVED_AGAIN
def test_judge_of_one_repeat_allows_it_only_within_the_bound(receipts: Receipts):
    logged = Logged(succeeded=1, failed=[0], interrupted=1)
    assert faults_with_b(receipts, logged) == [
        "1 repeats, where 0 are explained",
        "1 logged as interrupted, where 0 are explained: [(2, '/1')]",
    ]
    assert faults_with_b(receipts, logged, bound=1) == []


@RECEIVED_AGAIN
def test_judge_of_a_repeat_without_a_log_of_the_interrupted_attempt_finds_it(receipts: Receipts):
    """A worker that was killed in flight once left nothing in the log that told of its request."""
    logged = Logged(succeeded=1, failed=[0])
    assert faults_with_b(receipts, logged, bound=1) == ["1 received more often than logged: [(2, '/1')]"]


@RECEIVED_AGAIN
def test_judge_of_a_repeat_without_a_log_allows_it_for_a_reason_within_the_bound(receipts: Receipts):
    logged = Logged(succeeded=1, failed=[0])
    assert faults_with_b(receipts, logged, bound=1, underlogged_why="a reason") == []
    assert faults_with_b(receipts, logged, underlogged_why="a reason") == ["1 repeats, where 0 are explained"]


def test_judge_of_an_interrupted_attempt_that_was_not_received_allows_it_within_the_bound():
    """A worker may die between its claim and its request; where none dies, such a log tells of what never was."""
    logs = {**GOOD.logs, A: Logged(succeeded=1, interrupted=1)}
    assert faults(1, logs=logs) == []
    assert faults(0, logs=logs) == ["1 logged as interrupted, where 0 are explained: [(1, '/0')]"]


def test_judge_of_three_failed_logs_and_an_interrupted_one_finds_the_delivery_lost():
    found = faults_with_b(Receipts(failed=4), Logged(failed=[0, 1, 2], interrupted=1), bound=1)
    assert found == ["1 lost: [(2, '/1')]"]


def test_judge_of_what_is_owed_and_received_more_often_than_logged_finds_it_stuck_only():
    assert faults_with_b(Receipts(ok=1, failed=1), Logged(failed=[0]), owed=[B]) == ["1 stuck"]


def test_judge_of_a_repeat_of_what_nobody_promised_counts_it():
    found = faults_with_b(Receipts(ok=3), Logged(succeeded=3), expected={A})
    assert found == ["2 repeats, where 0 are explained"]


def test_judge_of_what_nobody_promised_received_more_often_than_logged_finds_it():
    found = faults_with_b(Receipts(ok=1, failed=1), Logged(succeeded=1), bound=1, expected={A})
    assert found == ["1 received more often than logged: [(2, '/1')]"]


def test_logged_tells_interrupted_logs_by_their_error_kind():
    """In the log it says "interrupted", word for word; counted as failed it would pass for one of the four attempts."""
    logged = Logged()
    logged.note(0, {"outcome": "failed", "error_kind": "interrupted"})
    logged.note(0, {"outcome": "failed", "error_kind": "reset"})
    logged.note(1, {"outcome": "failed", "error_kind": None})
    logged.note(2, {"outcome": "success", "error_kind": None})
    assert logged == Logged(succeeded=1, failed=[0, 1], interrupted=1)
    assert logged.count == 4


def test_judge_of_a_repeat_under_another_id_finds_it():
    changed = {**GOOD.receipts, A: Receipts(ok=1, ids={"msg_a", "msg_z"})}
    assert faults(receipts=changed) == ["1 came under more than one webhook-id: [(1, '/0')]"]


def test_judge_of_a_delivery_that_no_log_tells_of_finds_it():
    assert faults(logs={B: GOOD.logs[B]}) == ["1 received but not logged: [(1, '/0')]"]


def test_judge_of_an_ordered_webhook_finds_what_came_before_an_earlier_one():
    first, second, third = ((number, "/0") for number in (1, 2, 3))
    came = {first: Receipts(ok=1, first_ok_at=2.0), second: Receipts(ok=1, first_ok_at=1.0), third: Receipts(failed=4)}
    logs = {first: Logged(succeeded=1), second: Logged(succeeded=1), third: Logged(failed=[0, 1, 2, 3])}
    wrong = {"expected": came.keys(), "receipts": came, "logs": logs}
    assert faults(**wrong, lines=[[first, second, third]]) == ["1 came before an earlier one: [(2, '/0')]"]
    assert faults(**wrong, lines=[[second, first, third], [third]]) == []
