"""The two commands of the embedded default, as a new user runs them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.samples_data import SAMPLES
from tests.lab.worker import wait_until
from webhooks.local import demo

pytestmark = pytest.mark.timeout(180)


def start_demo(folder: Path, *arguments: str) -> tuple["subprocess.Popen[bytes]", Path]:
    """Start the demo; return the process and the file that its output goes to."""
    log_path = folder / "demo.log"
    with log_path.open("wb") as log:
        argv = [sys.executable, "-m", "webhooks", "demo", *arguments]
        env = {**os.environ, "TMPDIR": str(folder)}
        return subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True), log_path


def processes_in(folder: Path) -> list[str]:
    """Return the command lines of all processes that have the folder in theirs, or run in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if str(folder) in command or str(folder) in str((process / "cwd").readlink()):
                found.append(command)
        except OSError:
            continue  # it ended meanwhile, or is not ours to see
    return found


def test_demo_shows_the_main_job_and_leaves_nothing_behind(tmp_path: Path):
    process, log_path = start_demo(tmp_path, "--once")
    assert process.wait(150) == 0, log_path.read_text()
    shown = log_path.read_text()
    table = shown.partition("$ webhooks logs\n")[2]
    assert table.count("503 failed") >= 2
    assert "200 success  0      COTTask create" in table
    assert "200 success  2      COTNote edit" in table
    assert "receiver │ POST /tasks" in shown
    assert "/webhooks" in shown.partition("Flower shows")[2]
    assert processes_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == [log_path]


@pytest.mark.slow
def test_demo_stopped_by_ctrl_c_leaves_nothing_behind(tmp_path: Path):
    process, log_path = start_demo(tmp_path)
    wait_until(lambda: "Ctrl-C stops everything" in log_path.read_text(), "through the show", 120)
    assert len(processes_in(tmp_path)) >= 4  # Valkey, MongoDB, worker, Flower
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert processes_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == [log_path]


@pytest.mark.parametrize(("ours", "sample"), [("task-create", "event-task-create"), ("note-edit", "event-note-edit")])
def test_demo_sends_the_contracts_samples(ours: str, sample: str):
    path = Path(demo.__file__).parent / "events" / f"{ours}.json"
    assert path.read_bytes() == (SAMPLES / f"{sample}.json").read_bytes()
