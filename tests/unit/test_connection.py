"""How the addresses of one host share the connect time, and which of their failures is told."""

import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest

from webhooks.errors import ErrorKind, NoResponse
from webhooks.sender import connection
from webhooks.sender.connection import MAX_ADDRESSES, _first_that_works
from webhooks.sender.resolver import Endpoint


def endpoints(count: int) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(socket.AF_INET, (f"192.0.2.{number}", 80)) for number in range(1, count + 1))


def fail_with(*kinds: ErrorKind) -> Any:
    """Return what connects to nothing, with these failures in turn."""
    failures = iter(kinds)

    def connect(endpoint: Endpoint, share_s: float) -> Any:
        raise NoResponse(next(failures), endpoint.ip)

    return connect


@pytest.mark.parametrize("count", [1, 2, 5, MAX_ADDRESSES, MAX_ADDRESSES + 1, 200])
def test_every_address_gets_its_share_up_to_a_bound(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    now = [0.0]
    monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: now[0]))
    tried = min(count, MAX_ADDRESSES)

    def time_out(endpoint: Endpoint, share_s: float) -> Any:
        shares.append(share_s)
        now[0] += share_s
        raise NoResponse(ErrorKind.CONNECT_TIMEOUT, endpoint.ip)

    with pytest.raises(NoResponse, match=rf"192\.0\.2\.{tried}$"):
        _first_that_works(endpoints(count), 0.4, time_out)
    assert shares == pytest.approx([0.4 / tried] * tried)


def test_unused_time_goes_to_the_addresses_that_follow() -> None:
    shares: list[float] = []

    def refuse(endpoint: Endpoint, share_s: float) -> Any:
        shares.append(share_s)
        raise NoResponse(ErrorKind.CONNECT_REFUSED, endpoint.ip)

    with pytest.raises(NoResponse):
        _first_that_works(endpoints(4), time.monotonic() + 12, refuse)
    assert shares == pytest.approx([3, 4, 6, 12], abs=0.1)


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ((ErrorKind.CONNECT_FAILED,), "192.0.2.1"),
        ((ErrorKind.CONNECT_FAILED, ErrorKind.CONNECT_FAILED), "192.0.2.1"),
        ((ErrorKind.CONNECT_FAILED, ErrorKind.CONNECT_REFUSED, ErrorKind.CONNECT_FAILED), "192.0.2.2"),
        ((ErrorKind.CONNECT_REFUSED, ErrorKind.CONNECT_TIMEOUT, ErrorKind.CONNECT_FAILED), "192.0.2.2"),
        ((ErrorKind.CONNECT_TIMEOUT, ErrorKind.CONNECT_REFUSED), "192.0.2.2"),
    ],
)
def test_failure_that_tells_of_the_receiver_is_told(kinds: tuple[ErrorKind, ...], told: str) -> None:
    # An address without a route says that this machine lacks the family; the receiver's owner cannot mend that.
    with pytest.raises(NoResponse) as caught:
        _first_that_works(endpoints(len(kinds)), time.monotonic() + 5, fail_with(*kinds))
    assert caught.value.text == told


def test_passed_total_deadline_ends_the_search() -> None:
    with pytest.raises(NoResponse) as caught:
        _first_that_works(endpoints(2), time.monotonic() + 5, fail_with(ErrorKind.TIMEOUT))
    assert caught.value.kind is ErrorKind.TIMEOUT
