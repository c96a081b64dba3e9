"""The benchmark's network namespaces: what stands in them reaches the bridge, and all of it goes again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench import network
from tests.bench.network import LOCAL, NoNetwork, open_network
from tests.integration.test_bench import folder, run, start

__all__ = ["folder"]  # a fixture

TIMEOUT_S = 60

#: Listens at the address that it gets, and says what came.
SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], 8000))
print("listening", flush=True)
link, peer = server.accept()
print(peer[0], link.recv(100).decode(), flush=True)
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 8000), timeout=20) as link:
    link.sendall(b"hello")
"""


def has_link(pid: int) -> bool:
    """Say whether the one thing is there that a process makes outside of its namespaces."""
    return Path(f"/sys/class/net/bench{pid}").exists()


@pytest.fixture
def _namespaces() -> None:
    """Namespaces can be made here, and none is left."""
    try:
        with open_network():
            pass
    except NoNetwork as reason:
        pytest.skip(str(reason))


@pytest.mark.usefixtures("_namespaces")
def test_workers_reach_what_listens_at_the_bridge_and_all_of_it_goes_again():
    with open_network() as made:
        workers = [made.add_worker() for _ in range(2)]
        assert has_link(os.getpid())
        for client in (*workers, LOCAL):
            argv = [*made.hub.prefix, sys.executable, "-c", SERVER, made.hub.address]
            with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
                assert server.stdout is not None
                assert server.stdout.readline() == "listening\n"
                argv = [*client.prefix, sys.executable, "-c", CLIENT, made.hub.address]
                subprocess.run(argv, check=True, timeout=TIMEOUT_S)
                peer, said = server.stdout.readline().split()
            assert said == "hello"
            assert peer == client.address or client is LOCAL
    assert not has_link(os.getpid())


@pytest.mark.usefixtures("_namespaces")
def test_bridge_keeps_its_address_when_a_port_with_a_lower_one_is_added():
    """Otherwise hosts go on sending to the address before, and connections to the servers time out."""
    with open_network() as made:

        def ip(*arguments: str) -> str:
            argv = [*made.hub.prefix, "ip", "-json", "link", *arguments]
            return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=TIMEOUT_S).stdout

        ip("add", "low", "address", "02:00:00:00:00:00", "type", "veth", "peer", "name", "other")
        ip("set", "low", "master", "bridge", "up")
        assert json.loads(ip("show", "bridge"))[0]["address"] == network.BRIDGE_ADDRESS


@pytest.mark.usefixtures("_namespaces")
def test_nothing_is_left_of_a_network_after_an_error():

    def fail() -> None:
        with open_network() as made:
            made.add_worker()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not has_link(os.getpid())


@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_network_when_a_run_is_ended(tmp_path: Path, number: signal.Signals):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = start(temporary, "--quick", "--only", "scale")
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not list(temporary.glob("*/*-crew/worker0.log")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        assert has_link(process.pid)
        process.send_signal(number)
        process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == (130 if number == signal.SIGINT else -number)
        while has_link(process.pid):
            assert time.monotonic() < deadline + TIMEOUT_S
            time.sleep(0.05)
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("module", "name", "value", "said"),
    [
        pytest.param(os, "geteuid", lambda: 1000, "root", id="not-root"),
        pytest.param(shutil, "which", lambda *_, **__: None, "without ip and", id="no-tool"),
    ],
)
def test_where_namespaces_cannot_be_made_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, value: object, said: str
):
    monkeypatch.setattr(module, name, value)
    with pytest.raises(NoNetwork, match=said), open_network():
        pass


@pytest.mark.usefixtures("redis_client")
def test_row_that_cannot_be_measured_says_so_in_one_line_and_fails_nothing(
    folder: Path, redis_url: str, tmp_path: Path
):
    path = tmp_path / "report.json"
    done = run(folder, "--quick", "--only", "scale", "--broker-url", redis_url, "--json", str(path))
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if "leave them out" in line]
    assert len(told) == 1
    figures = json.loads(path.read_text())["figures"]
    assert [(figure["value"], figure["error"]) for figure in figures.values()] == [(None, None)]
