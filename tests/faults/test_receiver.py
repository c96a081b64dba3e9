"""The receiver counts right, and breaks what it is told to break."""

from collections.abc import Iterator

import pytest

from tests.lab.receiver_ports import ReceiverPorts


class Ports(ReceiverPorts):
    def switch(self, mode: str) -> None:
        self.command({"mode": mode})

    def counted(self) -> dict[int, tuple[int, int, list[str]]]:
        return {number: (ok, failed, ids) for number, _, ok, failed, _, ids in self.command({"mode": None})}


@pytest.fixture
def receiver() -> Iterator[Ports]:
    with Ports.running("tests.faults.receiver") as ports:
        yield ports


def test_receiver_counts_each_request_of_a_kept_connection(receiver: Ports):
    assert receiver.post("/0", 1, 1, 1) == [200, 200, 200]
    assert receiver.counted() == {1: (3, 0, ["msg_1"])}


def test_receiver_fails_the_first_attempt_of_every_tenth_event(receiver: Ports):
    assert receiver.post("/0", 10, 10) == [503, 200]
    assert receiver.counted() == {10: (1, 1, ["msg_10"])}


def test_receiver_told_to_fails_every_first_attempt(receiver: Ports):
    receiver.switch("fail_first")
    assert receiver.post("/0", 1, 1) == [503, 200]


def test_receiver_that_is_down_refuses_and_comes_back_at_its_port(receiver: Ports):
    receiver.switch("down")
    with pytest.raises(ConnectionRefusedError):
        receiver.post("/0", 1)
    receiver.switch("ok")
    assert receiver.post("/0", 1) == [200]


def test_receiver_told_to_resets_every_second_connection(receiver: Ports):
    receiver.switch("reset_half")
    seen = []
    for number in range(1, 5):
        try:
            seen += receiver.post("/0", number)
        except ConnectionResetError:
            seen.append(None)
    assert seen in ([200, None] * 2, [None, 200] * 2)
    assert sorted(entry[:2] for entry in receiver.counted().values()) == [(0, 1), (0, 1), (1, 0), (1, 0)]


def test_receiver_whose_client_is_gone_counts_no_success(receiver: Ports):
    receiver.begin("/0").close()
    assert receiver.post("/0", 2) == [200]  # answered later than the other would have been
    assert receiver.counted()[1] == (0, 1, ["m"])
