"""Who gets into Flower, started as operators start it."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.lab.worker import wait_until
from webhooks.local.processes import kill_group, spawn
from webhooks.local.servers import free_port, is_free

FLOWER = [sys.executable, "-m", "celery", "-A", "webhooks", "flower"]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.1", "flower.example"])
@pytest.mark.parametrize("way", ["option", "variable"])
def test_flower_does_not_open_to_everybody(address: str, way: str, redis_url: str):
    env = {**os.environ, "WEBHOOKS_BROKER_URL": redis_url}
    argv = [*FLOWER, f"--port={free_port()}"]
    if way == "option":
        argv.append(f"--address={address}")
    else:
        env["FLOWER_ADDRESS"] = address
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"open to everybody who reaches {address}" in done.stderr
    assert "Traceback" not in done.stderr


def test_flower_beyond_this_machine_asks_for_a_password(redis_url: str, tmp_path: Path):
    port, log_path = free_port(), tmp_path / "flower.log"
    env = {**os.environ, "WEBHOOKS_BROKER_URL": redis_url, "FLOWER_BASIC_AUTH": "someone:something"}
    with log_path.open("wb") as log:
        flower = spawn([*FLOWER, f"--port={port}", "--address=0.0.0.0"], env=env, stdout=log)
    try:
        wait_until(lambda: not is_free(port), "Flower listens")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/tasks", timeout=10)
    finally:
        kill_group(flower)
        flower.wait()


def test_tab_is_there_as_operators_start_flower(redis_url: str, mongodb_url: str, tmp_path: Path):
    port, log_path = free_port(), tmp_path / "flower.log"
    env = {**os.environ, "WEBHOOKS_BROKER_URL": redis_url, "WEBHOOKS_MONGODB_URL": mongodb_url}
    with log_path.open("wb") as log:
        flower = spawn([*FLOWER, f"--port={port}"], env=env, stdout=log)
    try:
        wait_until(lambda: not is_free(port), "Flower listens")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/webhooks", timeout=60) as answer:
            assert b"There are no webhooks yet" in answer.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/tasks", timeout=60) as answer:
            assert b'href="/webhooks">Webhooks</a>' in answer.read()
    finally:
        kill_group(flower)
        flower.wait()
