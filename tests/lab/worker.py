"""A real worker process, as `celery -A webhooks worker` starts it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from webhooks.local.processes import kill_group, spawn

#: Seconds for whatever should happen soon, on a machine that runs other things beside.
TIMEOUT_S = 60.0
_ROOT = Path(__file__).parents[2]

T = TypeVar("T")


def wait_until(look: Callable[[], T], what: str, timeout_s: float = TIMEOUT_S) -> T:
    """Look again and again until there is something true to see; fail with what was seen last."""
    give_up_at = time.monotonic() + timeout_s
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not {what} within {timeout_s} s; seen last: {seen!r}")
        time.sleep(0.05)


def environment() -> dict[str, str]:
    """Return our own environment without settings: a developer's must not change what is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WEBHOOKS_")}


def run_module(
    arguments: Sequence[str], settings: Mapping[str, str], log_path: Path, stdout: int | None = None
) -> "subprocess.Popen[bytes]":
    """Start a module of the tests as a process with settings; what it writes goes to a file, but for its `stdout`."""
    env = {**environment(), **settings, "PYTHONPATH": str(_ROOT)}
    with log_path.open("ab") as log:
        return spawn([sys.executable, "-m", *arguments], env=env, cwd=_ROOT, stdout=stdout or log)


class Worker:
    """One worker with settings of its own; its output goes to a file."""

    def __init__(self, folder: Path, settings: Mapping[str, str], name: str = "worker", *arguments: str) -> None:
        self.name = f"{name}@test"
        self.env = {**os.environ, **settings}
        self.log_path = folder / f"{name}.log"
        self._argv = [sys.executable, "-m", "celery", "-A", "webhooks", "worker", "-l", "INFO", "-n", self.name]
        self._argv += arguments
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        """Start it; with `wait`, until it takes messages."""
        before = len(self.log())
        with self.log_path.open("ab") as log:
            self._process = spawn(self._argv, env=self.env, stdout=log)
        if wait:
            wait_until(lambda: f"{self.name} ready" in self.log()[before:], f"ready: {self.log()[before:]}")

    @property
    def pid(self) -> int:
        """The process's id; an error while it does not run."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """Return all that it wrote."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def stop(self) -> None:
        """End it as an operator does, and wait for it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end, and do not wait."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def is_running(self) -> bool:
        """Say whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(60)
        finally:
            kill_group(process)
            process.wait()
