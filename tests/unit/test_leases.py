"""Whose lease has lapsed, and whether a process may say so of another; and the thread that renews one."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.lab.worker import wait_until
from webhooks.config import Settings
from webhooks.delivery.meters import Fault
from webhooks.errors import StoreUnavailable
from webhooks.store.leases import judge_leases
from webhooks.transport.holder import (
    BEGIN_WITHIN_S,
    CLAIM_LEASE_S,
    LEASE_S,
    MAX_GAP_S,
    RENEW_AGAIN_S,
    RENEW_EVERY_S,
    WITNESS_AFTER_S,
)
from webhooks.worker import renewal

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def lease(*, renewed_s: float, since_s: float = 1000, present: datetime = NOON) -> dict[str, Any]:
    """Make a lease that was renewed so many seconds ago, and has been without a gap for so many."""
    until = present + timedelta(seconds=CLAIM_LEASE_S - renewed_s)
    return {"since": present - timedelta(seconds=since_s), "until": until, "present": present}


def judge(other: dict[str, Any], own: dict[str, Any] | None = None) -> float | None:
    documents = {"other": other} if own is None else {"other": other, "own": own}
    return judge_leases(documents, "own").get("other")


ALIVE = lease(renewed_s=1)


def test_times_leave_room_for_failed_renewals_and_keep_the_promise():
    assert 3 * RENEW_EVERY_S < LEASE_S
    assert 2 * RENEW_EVERY_S + RENEW_AGAIN_S < CLAIM_LEASE_S
    assert CLAIM_LEASE_S + RENEW_EVERY_S <= LEASE_S, "when a message comes back, its claim is free"
    # The latest of the others renewed this much earlier than a witness, when a server was away for both.
    assert MAX_GAP_S + RENEW_EVERY_S < CLAIM_LEASE_S
    assert WITNESS_AFTER_S >= 2 * RENEW_EVERY_S
    # What a process has read holds at least for this long, as it renewed its lease not longer than this before.
    assert BEGIN_WITHIN_S + RENEW_EVERY_S < CLAIM_LEASE_S
    # Found dead once a second.
    assert LEASE_S + 1 < 20
    assert Settings().claim_s > CLAIM_LEASE_S, "otherwise the lease is of no use"


@pytest.mark.parametrize(
    ("renewed_s", "left_s"),
    [(0, CLAIM_LEASE_S), (8, CLAIM_LEASE_S - 8), (CLAIM_LEASE_S - 0.001, 0.001), (CLAIM_LEASE_S, 0), (3_000, 0)],
)
def test_lease_is_good_for_its_time_from_the_last_renewal(renewed_s: float, left_s: float):
    assert judge(lease(renewed_s=renewed_s), ALIVE) == pytest.approx(left_s)


@pytest.mark.parametrize(
    ("own", "wait_s"),
    [
        (None, WITNESS_AFTER_S),
        (lease(renewed_s=MAX_GAP_S), 0),
        (lease(renewed_s=MAX_GAP_S + 0.001), WITNESS_AFTER_S),
        (lease(renewed_s=60), WITNESS_AFTER_S),
        (lease(renewed_s=0, since_s=0), WITNESS_AFTER_S),
        (lease(renewed_s=0, since_s=2), WITNESS_AFTER_S - 2),
        (lease(renewed_s=0, since_s=WITNESS_AFTER_S - 0.001), RENEW_AGAIN_S),
        (lease(renewed_s=0, since_s=WITNESS_AFTER_S), 0),
        ({**ALIVE, "since": "x"}, WITNESS_AFTER_S),
        ({**ALIVE, "until": None}, WITNESS_AFTER_S),
    ],
)
def test_lease_lapses_only_in_the_eyes_of_one_that_renews_its_own(own: dict[str, Any] | None, wait_s: float):
    assert judge(lease(renewed_s=CLAIM_LEASE_S + 1), own) == pytest.approx(wait_s)


@pytest.mark.parametrize("away_s", [4.0, 6.0, 7.5, 9.0, 11.0, 300.0])
@pytest.mark.parametrize("ours_s", [0.0, 1.5, RENEW_EVERY_S])
@pytest.mark.parametrize("theirs_s", [0.0, 1.5, RENEW_EVERY_S])
def test_server_that_was_away_makes_nobody_dead(away_s: float, ours_s: float, theirs_s: float):
    """Before and after our renewal, which finds a gap; theirs is still on its way."""
    theirs = lease(renewed_s=theirs_s + away_s)
    ours = lease(renewed_s=ours_s + away_s)
    assert judge(theirs, ours) != 0
    gap_s = ours_s + away_s
    renewed = lease(renewed_s=0, since_s=0 if gap_s > MAX_GAP_S else 1000)
    assert judge(theirs, renewed) != 0


@pytest.mark.parametrize("back_s", [0.5, 2.0, 3.0, 4.0, 6.0, 300.0])
@pytest.mark.parametrize("ours_s", [0.0, 1.5, RENEW_EVERY_S, MAX_GAP_S])
@pytest.mark.parametrize("theirs_s", [0.0, 1.5, RENEW_EVERY_S])
def test_clock_that_goes_back_makes_nobody_dead(back_s: float, ours_s: float, theirs_s: float):
    """Before and after our renewal, which finds a gap; theirs is still on its way."""
    theirs = lease(renewed_s=theirs_s - back_s)
    assert judge(theirs, lease(renewed_s=ours_s - back_s)) != 0
    assert judge(theirs, lease(renewed_s=0, since_s=0 if back_s > ours_s else 1000)) != 0


def test_lease_that_was_not_renewed_after_the_clock_went_back_has_lapsed():
    assert judge(lease(renewed_s=-300), lease(renewed_s=0, since_s=WITNESS_AFTER_S)) == 0


@pytest.mark.parametrize("until", [None, "x"])
def test_lease_that_was_changed_by_hand_says_nothing(until: object):
    assert judge({**ALIVE, "until": until}, ALIVE) is None


def test_token_is_another_one_in_a_forked_child():
    code = """
import os
from webhooks.transport.holder import process_token
print(process_token(), flush=True)
if os.fork() == 0:
    print(process_token(), flush=True)
else:
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    tokens = done.stdout.split()
    assert len(set(tokens)) == 2
    assert [len(token) for token in tokens] == [16, 16]


class Server:
    """Takes renewals, or refuses them."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.renewed = self.tried = self.ended = 0

    def renew(self) -> None:
        self.tried += 1
        if self.error is not None:
            raise self.error
        self.renewed += 1

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "RENEW_EVERY_S", 0.02)
    monkeypatch.setattr(renewal, "RENEW_AGAIN_S", 0.02)


@pytest.mark.parametrize("make_error", [lambda: StoreUnavailable("away"), lambda: ZeroDivisionError("a defect")])
@pytest.mark.usefixtures("quick")
def test_renewal_goes_on_whatever_a_renewal_raises(
    make_error: Callable[[], Exception], caplog: pytest.LogCaptureFixture, faults: Counter[Fault]
):
    server = Server()
    server.error = make_error()
    one = renewal.Renewal("X", server.renew, server.end)
    one.start()
    wait_until(lambda: server.tried >= 3, "tried again")
    server.error = None
    wait_until(lambda: server.renewed >= 3, "renewed")
    assert server.ended == 0
    one.end()
    one.join(5)
    assert server.ended == 1
    assert faults == {Fault.LEASE_NOT_RENEWED: server.tried - server.renewed}
    if isinstance(make_error(), StoreUnavailable):
        lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert lines == ["the lease in X is not renewed: away"], "once, however long it is away"


@pytest.mark.usefixtures("quick")
def test_renewal_whose_end_fails_ends_all_the_same():
    def refuse() -> None:
        raise StoreUnavailable("away")

    one = renewal.Renewal("X", refuse, refuse)
    one.start()
    one.end()
    one.join(5)
    assert not one._thread.is_alive()
