"""The judge must condemn what is wrong: a matrix that cannot fail shows nothing."""

from dataclasses import replace

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


def faults(bound: int = 0, **changes: object) -> list[str]:
    return judge(replace(GOOD, **changes)).faults(bound)  # pyright: ignore[reportArgumentType]


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


@pytest.mark.parametrize(
    "receipts",
    [Receipts(ok=2, failed=1, ids={"msg_b"}), Receipts(ok=1, failed=2, ids={"msg_b"})],
    ids=["received twice", "failed again without a log"],
)
def test_judge_of_one_repeat_allows_it_only_within_the_bound(receipts: Receipts):
    changed = {A: GOOD.receipts[A], B: receipts}
    assert faults(receipts=changed) == ["1 repeats, where 0 are explained"]
    assert faults(bound=1, receipts=changed) == []


def test_judge_of_a_repeat_of_what_nobody_promised_counts_it():
    assert faults(expected={A}, receipts={**GOOD.receipts, B: Receipts(ok=3)}) == ["2 repeats, where 0 are explained"]


def test_judge_of_a_repeat_under_another_id_finds_it():
    changed = {**GOOD.receipts, A: Receipts(ok=1, ids={"msg_a", "msg_z"})}
    assert faults(receipts=changed) == ["1 came under more than one webhook-id: [(1, '/0')]"]


def test_judge_of_a_delivery_that_no_log_tells_of_finds_it():
    assert faults(logs={B: GOOD.logs[B]}) == ["1 received but not logged: [(1, '/0')]"]
