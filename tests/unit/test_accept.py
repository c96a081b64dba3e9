"""The step that accepts events: what it reserves it gives back, whatever fails."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from bson import ObjectId
from kombu.exceptions import OperationalError

from tests.lab.samples_data import read_sample
from webhooks.delivery import accept as accept_module
from webhooks.delivery.accept import MAX_STEP_DELIVERIES, Accepting, accept
from webhooks.delivery.attempt import fan_out
from webhooks.delivery.queueing import FROM_OUTBOX
from webhooks.delivery.services import Progress
from webhooks.errors import StoreUnavailable
from webhooks.models import COTWebhook, parse_event
from webhooks.store.deliveries import Blocked, Claim, Claimed, Delivery
from webhooks.transport.lanes import TAKEN_FROM_HEADER
from webhooks.transport.messages import Turn

WEBHOOK = COTWebhook.model_validate({**read_sample("webhook-task"), "url": "https://receiver.example/"})


class Room:
    """Counts what is reserved."""

    limit = 8

    def __init__(self, free: int) -> None:
        self.free = free

    def take(self, most: int) -> int:
        taken = min(most, self.free)
        self.free -= taken
        return taken

    def give_back(self, count: int) -> None:
        self.free += count


class World:
    """What the step asks, with parts that can fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, turn: Turn = Turn.NOW) -> None:
        self.given_up: list[Claim] = []
        self.left: list[Any] = []
        self.queued: list[Any] = []
        #: Ids of events of which a trace was left.
        self.traced: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.ours = True
        self.turn = turn
        self.webhooks = [WEBHOOK]
        #: Of each write, how many deliveries it had.
        self.writes: list[int] = []
        #: Of each question for turns, for how many.
        self.asked: list[int] = []
        webhooks = SimpleNamespace(
            of_company=lambda company: self.webhooks,
            unusable_of_company=lambda company: (),
            get_many=self._step("webhooks", lambda ids: dict.fromkeys(ids, WEBHOOK)),
            get=lambda one: WEBHOOK,
        )
        records = SimpleNamespace(
            accept_claimed=self._step("accept_claimed", lambda claims: [self._found(*one) for one in claims]),
            accept=self._step("accept", self._write),
        )
        ledger = SimpleNamespace(give_up=self.given_up.append)
        stores = {"webhooks": webhooks, "records": records, "deliveries": ledger, "gates": None}
        traces = SimpleNamespace(write=lambda events: self.traced.extend(event_id for event_id, _ in events))
        stores["outbox"] = SimpleNamespace(remove=self._step("remove", lambda event_id: None))
        self.services = cast("Any", SimpleNamespace(**stores, traces=traces, tracer=None, progress=Progress()))
        monkeypatch.setattr(accept_module, "ask_turns", self._step("ask", self._ask))
        monkeypatch.setattr(
            accept_module, "queue_attempts", self._step("queue", lambda *given: self.queued.extend(given[0]))
        )
        monkeypatch.setattr(accept_module, "leave_lane", lambda delivery, claim: self.left.append(claim))

    def _write(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        self.writes.append(len(deliveries))
        return list(deliveries)

    def _ask(self, asked: Sequence[Any], room: int, slots: int) -> Callable[[], list[Turn]]:
        self.asked.append(len(asked))
        beyond = Turn.SOON if self.turn is Turn.NOW else self.turn
        return lambda: [self.turn if number < room else beyond for number in range(len(asked))]

    def _found(self, delivery: Delivery, claim: Claim) -> Claimed | Blocked:
        return Claimed(delivery, None, (), claim.log_id) if self.ours else Blocked(0)

    def _step(self, name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            if name in self.fails:
                raise self.fails[name]
            return do(*arguments)

        return step


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def event(**headers: object) -> Accepting:
    return Accepting(str(ObjectId()), read_sample("event-task-create"), headers, makes_attempts=True)


def many_webhooks(count: int) -> list[COTWebhook]:
    return [WEBHOOK.model_copy(update={"id": ObjectId()}) for _ in range(count)]


def accept_all(world: World, events: list[Accepting]) -> None:
    for _ in range(len(events)):
        outcomes = [one.outcome for one in accept(world.services, events, Room(0))]
        events = [one for one, outcome in zip(events, outcomes, strict=True) if outcome is None]
        if not events:
            return
    raise AssertionError(f"{len(events)} events are not accepted")


def test_first_attempt_is_begun_and_its_room_is_kept(world: World):
    room = Room(2)
    (accepted,) = accept(world.services, [event()], room)
    assert len(accepted.attempts) == 1
    assert room.free == 1
    assert world.queued == world.left == world.given_up == []


@pytest.mark.parametrize("fault", ["ask", "webhooks", "accept_claimed", "queue"])
def test_what_was_reserved_is_given_back_when_a_server_is_away(world: World, fault: str):
    error = OperationalError("away") if fault in ("ask", "queue") else StoreUnavailable("away")
    world.fails[fault] = error
    world.ours = fault != "queue"  # so that there is something to queue
    room = Room(2)
    with pytest.raises(type(error)):
        accept(world.services, [event()], room)
    assert room.free == 2
    assert len(world.left) == len(world.given_up) == (0 if fault == "ask" else 1)


def test_attempts_begin_although_another_event_cannot_be_removed_from_the_outbox(world: World):
    """Repeated, the step would forget them: their claims and slots would be held for nothing."""
    world.fails["remove"] = StoreUnavailable("away")
    room = Room(2)
    begun, stored = accept(world.services, [event(), event(**{FROM_OUTBOX: True})], room)
    assert len(begun.attempts) == 1
    assert stored.outcome is not None
    assert (room.free, len(world.queued)) == (1, 1)
    assert world.given_up == world.left == []


def test_what_was_written_down_before_is_queued_and_leaves_its_lane(world: World):
    world.ours = False
    room = Room(2)
    (accepted,) = accept(world.services, [event()], room)
    assert accepted.outcome is not None
    assert not accepted.attempts
    assert (room.free, len(world.queued), len(world.left)) == (2, 1, 1)


def test_event_without_room_waits_for_its_turn(world: World):
    waiting = event()
    (accepted,) = accept(world.services, [waiting], Room(0))
    assert accepted.outcome is None
    assert len(waiting.unplaced) == 1
    accept(world.services, [waiting], Room(0))
    assert world.asked == [1, 0], "each look costs the broker something"


def test_event_without_room_whose_endpoint_is_slow_does_not_wait_here(world: World):
    """It held one of few places for messages, so that those of quick endpoints were not even taken."""
    world.turn = Turn.LATER
    (accepted,) = accept(world.services, [event()], Room(0))
    assert accepted.outcome is not None
    assert len(world.queued) == 1


def test_writes_of_many_events_for_many_webhooks_are_bounded(world: World):
    """A hundred events for 2,000 webhooks each were one write: 200,000 documents, 17 KB of the worker for each."""
    world.webhooks = many_webhooks(300)
    accept_all(world, [event() for _ in range(10)])
    assert len(world.queued) == 3_000
    assert max(world.writes) < MAX_STEP_DELIVERIES + 300


def test_writes_of_one_event_for_very_many_webhooks_are_bounded(world: World):
    world.webhooks = many_webhooks(MAX_STEP_DELIVERIES + 500)
    accept_all(world, [event()])
    assert world.writes == [MAX_STEP_DELIVERIES, 500]


def test_writes_are_bounded_in_bytes(world: World, monkeypatch: pytest.MonkeyPatch):
    size = len(fan_out(parse_event(read_sample("event-task-create"), 10**6), "x", world.services.webhooks)[0].body)
    monkeypatch.setattr(accept_module, "MAX_STEP_BYTES", 5 * size)
    world.turn = Turn.LATER
    world.webhooks = many_webhooks(2)
    accept_all(world, [event() for _ in range(20)])
    assert len(world.queued) == 40
    assert max(world.writes) == 6, "three events, each with two deliveries that might have been attempted here"


def test_event_of_another_company_does_not_wait_behind_many_for_many_webhooks(world: World):
    wide, narrow = many_webhooks(MAX_STEP_DELIVERIES), many_webhooks(10)
    loud = [event(**{TAKEN_FROM_HEADER: "loud/COTTask/-"}) for _ in range(5)]
    quiet = [event(**{TAKEN_FROM_HEADER: "quiet/COTTask/-"}) for _ in range(5)]
    for one in quiet:
        one.value = {**read_sample("event-task-create"), "company": "b" * 24}
    world.services.webhooks.of_company = lambda company: narrow if str(company) == "b" * 24 else wide
    left = [*loud, *quiet]
    for _ in range(2):
        found = accept(world.services, left)
        left = [one for one, accepted in zip(left, found, strict=True) if accepted.outcome is None]
    assert left == loud[2:]


def test_event_that_nobody_asked_for_leaves_a_trace_before_anything_is_begun(world: World):
    other = Accepting("e1", read_sample("event-user-logout"), {}, makes_attempts=True)
    world.fails["ask"] = OperationalError("away")
    with pytest.raises(OperationalError):
        accept(world.services, [event(), other], Room(2))
    assert world.traced == ["e1"]
