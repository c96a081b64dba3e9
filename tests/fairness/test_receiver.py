"""The receiver behaves as it is told to, and notes what came."""

import time
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from tests.fairness.judge import Arrival
from tests.fairness.receiver import Behaviour, Endpoint
from tests.lab.receiver_ports import ReceiverPorts
from tests.lab.worker import wait_until


class Ports(ReceiverPorts):
    def set(self, path: str, behaviour: Behaviour) -> None:
        self.command({"do": "set", "paths": {path: asdict(behaviour)}})

    def counts(self, path: str) -> dict[str, int]:
        return self.command({"do": "counts"})[path]

    def records(self) -> list[Arrival]:
        return [Arrival(*record) for record in self.command({"do": "records"})]


@pytest.fixture
def receiver() -> Iterator[Ports]:
    with Ports.running("tests.fairness.receiver") as ports:
        yield ports


def test_receiver_notes_what_came_and_when(receiver: Ports):
    before = time.monotonic()
    assert receiver.post("/a", 1, 2, data={"sent_at": 12.5}) == [200, 200]
    first, second = receiver.records()
    assert (first.path, first.number, first.status, first.sent_at, first.webhook_id) == ("/a", 1, 200, 12.5, "msg_1")
    assert second.number == 2
    assert first.ended_at is not None
    assert before < first.arrived_at <= first.ended_at <= second.arrived_at < time.monotonic()
    assert receiver.counts("/a") == {"came": 2, "ok": 2, "in_flight": 0, "most_in_flight": 1, "outages": 0}


def test_receiver_told_to_takes_its_time(receiver: Ports):
    receiver.set("/a", Behaviour(delay_s=0.2))
    assert receiver.post("/a", 1) == [200]
    (record,) = receiver.records()
    assert record.ended_at is not None
    assert 0.2 <= record.ended_at - record.arrived_at < 1


def test_receiver_behaves_by_path(receiver: Ports):
    receiver.set("/a", Behaviour(status=503))
    assert receiver.post("/a", 1) == [503]
    assert receiver.post("/b", 1) == [200]


def test_receiver_that_was_down_is_up_when_told(receiver: Ports):
    receiver.set("/a", Behaviour(status=503))
    assert receiver.post("/a", 1) == [503]
    receiver.set("/a", Behaviour())
    assert receiver.post("/a", 1) == [200]
    assert [record.is_ok for record in receiver.records()] == [False, True]


def test_receiver_fails_its_share(receiver: Ports):
    receiver.set("/a", Behaviour(fail_share=0.5))
    statuses = receiver.post("/a", *range(100))
    assert set(statuses) == {200, 500}
    assert 25 < statuses.count(500) < 75


def test_receiver_that_hangs_holds_requests_until_the_client_goes(receiver: Ports):
    receiver.set("/a", Behaviour("hang"))
    links = [receiver.begin("/a") for _ in range(3)]
    wait_until(lambda: receiver.counts("/a")["in_flight"] == 3, "three in flight")
    assert [(record.ended_at, record.status) for record in receiver.records()] == [(None, None)] * 3
    for link in links:
        link.close()
    wait_until(lambda: receiver.counts("/a")["in_flight"] == 0, "none in flight")
    assert receiver.counts("/a") == {"came": 3, "ok": 0, "in_flight": 0, "most_in_flight": 3, "outages": 0}
    assert all(record.ended_at is not None and record.status is None for record in receiver.records())


def test_receiver_whose_client_is_gone_counts_no_success(receiver: Ports):
    receiver.set("/a", Behaviour(delay_s=0.2))
    receiver.begin("/a").close()
    assert receiver.post("/a", 2) == [200]  # answered later than the other would have been
    assert [record.status for record in receiver.records()] == [None, 200]


def test_receiver_forgets(receiver: Ports):
    receiver.post("/a", 1)
    receiver.command({"do": "forget"})
    assert receiver.records() == []
    assert receiver.counts("/a")["came"] == 0


def test_receiver_that_wakes_answers_what_is_too_much_with_503(receiver: Ports):
    receiver.set("/a", Behaviour("waking", growth=0, slack=0))
    assert receiver.post("/a", 1) == [503]
    assert receiver.counts("/a")["outages"] == 1


def bears(*by_second: int) -> list[int]:
    """Return how many requests of each second a waking endpoint bears that bears 3 × the last second's + 20."""
    endpoint = Endpoint(Behaviour("waking", growth=3, slack=20))
    return [sum(endpoint.take(100 + second + 0.5) for _ in range(count)) for second, count in enumerate(by_second)]


def test_waking_endpoint_bears_a_load_that_grows():
    assert bears(1, 20, 80, 260, 800, 800) == [1, 20, 80, 260, 800, 800]


def test_waking_endpoint_falls_over_when_all_comes_at_once():
    assert bears(1, 200) == [1, 23]


def test_waking_endpoint_forgets_what_it_bore_while_nothing_comes():
    assert bears(20, 80, 0, 100) == [20, 80, 0, 20]
