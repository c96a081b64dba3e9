"""Programs of one measurement: workers that run until it ends, and programs that write a report and end.

If one fails or takes too long, `RowFailed` is raised with what it wrote last.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from tests.bench import processes
from tests.bench.measures import RowFailed
from webhooks.local.processes import Program, Supervisor, last_lines

#: Seconds for anything to start.
SOON_S = 60.0
#: Seconds between two samples.
LOOK_EVERY_S = 0.05


class Troupe(Supervisor):
    """Programs of one measurement. A Ctrl-C that comes while they end still ends the whole run."""

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._killing and error[0] is None:
            raise KeyboardInterrupt


class Crew:
    """Running programs: workers, or Flower."""

    def __init__(self, troupe: Troupe, logs: Mapping[str, Path]) -> None:
        self._troupe = troupe
        self._logs = logs
        self._cpu = processes.Cpu()

    def check(self) -> None:
        """Make sure that all run."""
        for name, path in self._logs.items():
            if not self._troupe.is_running(name):
                raise RowFailed(f"{name} has ended: {_last_words(path)}")

    def wait_until_ready(self) -> None:
        """Wait until all workers take messages."""
        for name, path in self._logs.items():
            wait(lambda path=path: " ready." in path.read_text(errors="replace"), f"{name} ready", self.check)

    def cpu_s(self) -> float:
        return self._cpu.used_s(self._leaders())

    def memory_bytes(self) -> list[int]:
        return [processes.memory_bytes(processes.members_of([leader])) for leader in self._leaders()]

    def _leaders(self) -> list[int]:
        return [pid for name in self._logs if (pid := self._troupe.pid_of(name)) is not None]


@contextmanager
def run_crew(programs: Sequence[Program], folder: Path, screen: TextIO) -> Iterator[Crew]:
    """Run programs while the context lasts; workers may not take messages yet.

    Args:
        programs: to run.
        folder: for their logs; made, and removed at the end, as logs can be large.
        screen: gets what the supervisor says.
    """
    folder.mkdir()
    logs = {program.name: folder / f"{program.name}.log" for program in programs}
    with Troupe(screen) as troupe:
        for program in programs:
            troupe.start(replace(program, log_path=logs[program.name], restart=False))
        yield Crew(troupe, logs)
    shutil.rmtree(folder)


def run_to_end(programs: Sequence[Program], folder: Path, screen: TextIO, within_s: float) -> list[Any]:
    """Run programs beside each other; return their reports.

    Args:
        programs: each gets the path of its report as its last argument.
        folder: for reports and logs; made.
        screen: gets what the supervisor says.
        within_s: seconds that they may take.
    """
    folder.mkdir()
    reports = {program.name: folder / f"{program.name}.json" for program in programs}
    logs = {name: path.with_suffix(".log") for name, path in reports.items()}
    with Troupe(screen) as troupe:
        for program in programs:
            name = program.name
            argv = [*program.argv, str(reports[name])]
            troupe.start(replace(program, argv=argv, log_path=logs[name], restart=False))
        wait(lambda: not any(map(troupe.is_running, reports)), f"{' and '.join(reports)} to end", within_s=within_s)
    for name, report in reports.items():
        if not report.exists():
            raise RowFailed(f"{name} failed: {_last_words(logs[name])}")
    return [json.loads(report.read_text()) for report in reports.values()]


def wait(
    is_done: Callable[[], bool], what: str, check: Callable[[], None] = lambda: None, within_s: float = SOON_S
) -> None:
    """Wait for something.

    Args:
        is_done: returns whether it has happened.
        what: what it is, for the error.
        check: raises when there is no use in waiting.
        within_s: seconds.
    """
    deadline = time.monotonic() + within_s
    while not is_done():
        check()
        if time.monotonic() > deadline:
            raise RowFailed(f"waited {within_s:g} s for {what}")
        time.sleep(LOOK_EVERY_S)


def _last_words(path: Path) -> str:
    return " / ".join(last_lines(path)) or "it wrote nothing"
