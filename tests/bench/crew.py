"""The programs of one measurement: workers that run until it is over, and producers that end by themselves.

Owns their processes while a context lasts, and what is said of one that ended too early. Called by `stage`.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO, cast

from tests.bench import processes
from tests.bench.measures import RowFailed
from webhooks.local.processes import Program, Supervisor, last_lines

#: Seconds for whatever comes up.
SOON_S = 60.0
#: Seconds between two looks.
LOOK_EVERY_S = 0.05


class Troupe(Supervisor):
    """Programs of one measurement. A Ctrl-C that comes while they end is not forgotten: it ends the whole run."""

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._killing and error[0] is None:
            raise KeyboardInterrupt


class Crew:
    """Workers that run."""

    def __init__(self, supervisor: Supervisor, programs: Sequence[Program], folder: Path) -> None:
        self._supervisor = supervisor
        self._programs = programs
        self._folder = folder
        self._cpu = processes.Cpu()

    def check(self) -> None:
        """Make sure that all run.

        Raises:
            RowFailed: one has ended.
        """
        for program in self._programs:
            if not self._supervisor.is_running(program.name):
                raise RowFailed(f"{program.name} has ended: {_told(program)}")

    def wait_until_ready(self) -> None:
        """Wait until all take messages.

        Raises:
            RowFailed: one does not.
        """
        for program in self._programs:
            path = cast("Path", program.log_path)
            wait(lambda p=path: " ready." in p.read_text(errors="replace"), f"{program.name} ready", self.check)

    def leaders(self) -> list[int]:
        """Return the ids of the processes that were started, of those that have said theirs."""
        found = []
        for program in self._programs:
            text = _pid_path(self._folder, program.name)
            if text.exists() and (pid := text.read_text().strip()):
                found.append(int(pid))
        return found

    def cpu_s(self) -> float:
        """Return the CPU seconds used by all until now."""
        return self._cpu.used_s(self.leaders())

    def memory_bytes(self) -> list[int]:
        """Return the memory of each worker with all its processes."""
        return [processes.memory_bytes(processes.members_of([leader])) for leader in self.leaders()]


@contextmanager
def run_crew(bases: Sequence[Program], folder: Path, screen: TextIO, *, is_worker: bool = True) -> Iterator[Crew]:
    """Run workers while the context lasts; they may not take messages yet.

    Args:
        bases: Celery's workers, without their names and files.
        folder: is made for their files, and removed again.
        screen: gets what the supervisor says.
        is_worker: whether they are workers, which have names and write their process ids; Flower does not.
    """
    folder.mkdir()
    programs = [
        replace(
            base,
            argv=[
                *base.argv,
                *([f"--hostname={base.name}@%h", f"--pidfile={_pid_path(folder, base.name)}"] if is_worker else []),
            ],
            log_path=folder / f"{base.name}.log",
            restart=False,
        )
        for base in bases
    ]
    with Troupe(screen) as troupe:
        for program in programs:
            troupe.start(program)
            if not is_worker:
                _pid_path(folder, program.name).write_text(str(troupe.pid_of(program.name)))
        yield Crew(troupe, programs, folder)
    shutil.rmtree(folder)  # a log can be large


def run_to_end(
    orders: Sequence[Sequence[str]],
    env: Mapping[str, str],
    cwd: Path,
    *,
    new_path: Callable[[str], Path],
    screen: TextIO,
    within_s: float,
) -> list[Any]:
    """Run programs that write a report, whose path is added to their arguments; return the reports.

    Args:
        orders: their command lines.
        env: their whole environment.
        cwd: where they run.
        new_path: makes a path that ends so, which no other has.
        screen: gets what the supervisor says.
        within_s: seconds that they may take.

    Raises:
        RowFailed: one failed, or took too long.
    """
    reports = [new_path("report.json") for _ in orders]
    programs = [
        Program(f"{report.stem}", [*argv, str(report)], env, cwd, log_path=new_path("run.log"), restart=False)
        for argv, report in zip(orders, reports, strict=True)
    ]
    with Troupe(screen) as troupe:
        for program in programs:
            troupe.start(program)
        wait(
            lambda: not any(troupe.is_running(program.name) for program in programs),
            "a producer or a yardstick to end",
            within_s=within_s,
        )
    for program, report in zip(programs, reports, strict=True):
        if not report.exists():
            raise RowFailed(f"a producer or a yardstick failed: {_told(program)}")
    return [json.loads(report.read_text()) for report in reports]


def environment() -> dict[str, str]:
    """Return the environment without what would set the product, so that its defaults hold."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("WEBHOOKS_", "CELERY_"))}


def wait(
    is_done: Callable[[], bool], what: str, check: Callable[[], None] = lambda: None, within_s: float = SOON_S
) -> None:
    """Wait for something.

    Args:
        is_done: says whether it is so.
        what: what is waited for, in words.
        check: raises when there is no use in waiting.
        within_s: seconds.

    Raises:
        RowFailed: it took longer.
    """
    deadline = time.monotonic() + within_s
    while not is_done():
        check()
        if time.monotonic() > deadline:
            raise RowFailed(f"waited {within_s:g} s for {what}")
        time.sleep(LOOK_EVERY_S)


def _pid_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.pid"


def _told(program: Program) -> str:
    """Say what a program wrote last."""
    return " / ".join(last_lines(cast("Path", program.log_path))) or "it wrote nothing"
