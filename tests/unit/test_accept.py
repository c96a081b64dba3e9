"""The step that accepts events: what it reserves it gives back, whatever fails."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from bson import ObjectId
from kombu.exceptions import OperationalError

from tests.lab.samples_data import read_sample
from webhooks.delivery import accept as accept_module
from webhooks.delivery.accept import Accepting, accept
from webhooks.errors import StoreUnavailable
from webhooks.models import COTWebhook
from webhooks.store.deliveries import Blocked, Claim, Claimed, Delivery
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
        self.fails: dict[str, Exception] = {}
        self.ours = True
        self.turn = turn
        #: Of each question for turns, for how many.
        self.asked: list[int] = []
        webhooks = SimpleNamespace(
            of_company=lambda company: (WEBHOOK,),
            unusable_of_company=lambda company: (),
            get_many=self._step("webhooks", lambda ids: dict.fromkeys(ids, WEBHOOK)),
            get=lambda one: WEBHOOK,
        )
        records = SimpleNamespace(
            accept_claimed=self._step("accept_claimed", lambda claims: [self._found(*one) for one in claims]),
            accept=self._step("accept", list),
        )
        ledger = SimpleNamespace(give_up=self.given_up.append)
        self.services = cast("Any", SimpleNamespace(webhooks=webhooks, records=records, deliveries=ledger, gates=None))
        monkeypatch.setattr(accept_module, "ask_turns", self._step("ask", self._ask))
        monkeypatch.setattr(
            accept_module, "queue_attempts", self._step("queue", lambda *given: self.queued.extend(given[0]))
        )
        monkeypatch.setattr(accept_module, "leave_lane", lambda delivery, claim: self.left.append(claim))

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


def event() -> Accepting:
    return Accepting(str(ObjectId()), read_sample("event-task-create"), {}, makes_attempts=True)


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
