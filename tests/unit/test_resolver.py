"""The order in which the addresses of a host are tried."""

import socket
from typing import Any

import pytest

from webhooks.sender.resolver import Resolver


def answer(ip: str) -> Any:
    """Return what ``getaddrinfo`` says of an address."""
    if ":" in ip:
        return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (ip, 80, 0, 0))
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80))


@pytest.mark.parametrize(
    ("found", "tried"),
    [
        pytest.param(["192.0.2.1"], ["192.0.2.1"], id="one"),
        pytest.param(["192.0.2.2", "192.0.2.1"], ["192.0.2.2", "192.0.2.1"], id="one-family-as-it-came"),
        pytest.param(
            ["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1"],
            ["2001:db8::1", "192.0.2.1", "2001:db8::2", "2001:db8::3"],
            id="ipv6-first",
        ),
        pytest.param(
            ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"],
            ["192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"],
            id="ipv4-first",
        ),
        pytest.param(
            ["2001:db8::1", "192.0.2.1", "2001:db8::1", "192.0.2.1", "192.0.2.2"],
            ["2001:db8::1", "192.0.2.1", "192.0.2.2"],
            id="doubles",
        ),
    ],
)
def test_families_take_turns_and_keep_the_resolvers_order(found: list[str], tried: list[str]) -> None:
    resolver = Resolver(lambda host, port: [answer(ip) for ip in found])
    assert [endpoint.ip for endpoint in resolver.resolve("receiver.example", 80, 5)] == tried
