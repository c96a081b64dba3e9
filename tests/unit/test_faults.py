"""What goes wrong on our side is counted, by its kind. Leases and dead letters have their own tests."""

from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId
from kombu.exceptions import OperationalError

from tests.lab.logs import make_attempt, make_log
from webhooks.config import get_settings
from webhooks.delivery import holding, record
from webhooks.delivery.meters import Fault
from webhooks.errors import Requeue, StoreUnavailable
from webhooks.jobs import sweep
from webhooks.models import now
from webhooks.store.deliveries import PendingDelivery


class Waits:
    """Stands for `stopping`: does not wait, and says at the last wait that the worker stops."""

    def __init__(self, waits: int = 0) -> None:
        self.left = waits

    def wait(self, _: float) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("away", [StoreUnavailable("away"), OperationalError("away")], ids=["MongoDB", "broker"])
@pytest.mark.parametrize("is_back", [True, False])
def test_each_try_that_finds_a_server_away_is_counted(
    monkeypatch: pytest.MonkeyPatch, faults: Counter[Fault], away: Exception, is_back: bool
):
    tries = [away, away, None if is_back else away]

    def operation() -> str:
        if (error := tries.pop(0)) is not None:
            raise error
        return "done"

    monkeypatch.setattr(holding, "stopping", Waits(2))
    with nullcontext() if is_back else pytest.raises(Requeue):
        assert holding.hold(operation) == "done"
    assert faults == {Fault.SERVER_AWAY: 2 if is_back else 3}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (None, None),
        (StoreUnavailable("away"), Fault.LOG_LATE),
        (ValueError("a defect"), Fault.LOG_UNSTORABLE),
    ],
    ids=["stored", "away", "defect"],
)
def test_log_that_is_not_stored_is_counted(
    monkeypatch: pytest.MonkeyPatch, faults: Counter[Fault], error: Exception | None, kind: Fault | None
):
    queued: list[Any] = []

    def write(logs: list[Any]) -> list[Exception | None]:
        if error is not None:
            raise error
        return [None]

    services = SimpleNamespace(records=SimpleNamespace(record=write))
    monkeypatch.setattr(record, "get_services", lambda: services)
    write_log = SimpleNamespace(apply_async=lambda arguments, **_: queued.append(arguments))
    monkeypatch.setattr(record, "app", SimpleNamespace(tasks={"webhooks.write_log": write_log}))
    record.store_log(make_log("x", attempt=make_attempt()))
    assert faults == ({} if kind is None else {kind: 1})
    assert len(queued) == (kind is Fault.LOG_LATE)


def test_log_that_mongodb_refuses_is_counted(monkeypatch: pytest.MonkeyPatch, faults: Counter[Fault]):
    services = SimpleNamespace(records=SimpleNamespace(record=lambda logs: [ValueError("too large")]))
    monkeypatch.setattr(record, "get_services", lambda: services)
    record.store_log(make_log("x", attempt=make_attempt()))
    assert faults == {Fault.LOG_UNSTORABLE: 1}


def test_each_message_that_the_sweep_finds_lost_is_counted(monkeypatch: pytest.MonkeyPatch, faults: Counter[Fault]):
    ids = ["msg_1", "msg_2"]
    lost = [PendingDelivery(one, "label", 0, ObjectId(), ObjectId()) for one in ids]
    postponed: list[str] = []
    deliveries = SimpleNamespace(now=now, forget_events=lambda *_: 0, postpone=lambda found, _: postponed.extend(found))
    webhooks = SimpleNamespace(get_many=dict.fromkeys)
    services: Any = SimpleNamespace(deliveries=deliveries, webhooks=webhooks)
    queued: list[Any] = []
    monkeypatch.setattr(sweep, "queue_released", lambda delivery, _: queued.append(delivery))
    monkeypatch.setattr(sweep, "_find_lost", lambda *_: lost)
    assert sweep.sweep(services, get_settings()) == 2
    assert queued == lost
    assert postponed == ids
    assert faults == {Fault.MESSAGE_LOST: 2}


@pytest.mark.parametrize(
    ("error", "count"),
    [(ZeroDivisionError("a defect"), 2), (StoreUnavailable("away"), 0), (OperationalError("away"), 0)],
    ids=["defect", "MongoDB", "broker"],
)
def test_job_that_meets_a_defect_goes_on_and_is_counted(
    monkeypatch: pytest.MonkeyPatch, faults: Counter[Fault], error: Exception, count: int
):
    runs = []

    def job(*_: object) -> int:
        runs.append(1)
        raise error

    leases = SimpleNamespace(take_job=lambda *_: True)
    monkeypatch.setattr(sweep, "get_services", lambda: SimpleNamespace(leases=leases))
    monkeypatch.setattr(sweep, "stopping", Waits(2))
    sweep._run("job", job, 0)
    assert len(runs) == 2
    assert faults[Fault.JOB_DEFECT] == count
