"""Runs named programs for as long as it runs itself: starts them, shows their output, starts again what dies.

Owns the child processes and the signals that end them. Knows nothing of what the programs are. Called by `up` and
the demo; the tests borrow `spawn`.

One thread, the keeper, starts every child and ends it, because Linux ends a child whose parent asked for that
(``PR_SET_PDEATHSIG``) when the *thread* that started it is gone, not the process. The main thread is the caller's:
Ctrl-C reaches it as the usual ``KeyboardInterrupt``, which can never come between a child's start and its entry in the
books, since those are the keeper's.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self

from webhooks.errors import CannotStart

#: Seconds from a program's death until it is started again: the first time, the second, …; the last one stays.
BACKOFF_S: tuple[float, ...] = (1, 2, 4, 8, 16, 30)
#: A program that ran for so many seconds works: its next death begins at the first back-off again.
SETTLED_S = 60.0
#: So many deaths before a program was ready or settled for the first time: it cannot start.
MAX_FIRST_DEATHS = 5

#: Seconds between two looks at the children.
_LOOK_EVERY_S = 0.05
#: Seconds that the last lines of an ended program may take to the screen.
_READER_TIMEOUT_S = 2.0
#: Bytes of a line that are shown as one; a program without line ends must not fill the memory.
_MAX_LINE_BYTES = 16 * 1024
#: Lines that an error repeats of what a program wrote last.
_LAST_LINES = 3
#: Bytes at the end of a log file in which those are looked for.
_LAST_BYTES = 8 * 1024
#: Columns of a name on the screen, more where a longer name comes.
_NAME_COLUMNS = 7
#: Escape sequences for the names: cyan, yellow, green, magenta, blue.
_COLOURS = ("\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[35m", "\x1b[34m")
_NO_COLOUR = "\x1b[0m"
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Runs in the child before the program itself and becomes it: asks Linux to end it with its parent. Not Popen's
#: ``preexec_fn``, which can dead-lock in a process that has threads. The parent's id tells whether it was gone
#: before the request was made. Python ignores SIGPIPE; the program must not inherit that.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the supervisor is gone")
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"cannot run {sys.argv[2]}: {error.strerror}")
"""


@dataclass(frozen=True)
class Program:
    """A program to keep running."""

    #: What stands before its lines on the screen, and names it in errors; unique within a supervisor.
    name: str
    argv: Sequence[str]
    #: The whole environment; nothing is added to it, and it is never shown.
    env: Mapping[str, str] = field(repr=False)
    #: Where it runs; None for the supervisor's own folder.
    cwd: Path | None = None
    #: Says whether it does its work, for `Supervisor.start` to wait for; None if running is enough.
    ready: Callable[[], bool] | None = None
    #: Seconds between the request to stop and the kill.
    grace_s: float = 10
    #: Where its output is appended; None for the screen.
    log_path: Path | None = None
    #: Whether it is started again when it ends.
    restart: bool = True


def spawn(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, stdout: int | IO[bytes] | None
) -> "subprocess.Popen[bytes]":
    """Start a process in a session of its own, so that the terminal's Ctrl-C does not reach it.

    On Linux the kernel kills it when the calling *thread* ends; call from one that lives long enough.

    Args:
        argv: the program, looked up on the PATH of ``env``, and its arguments.
        env: the whole environment.
        cwd: where it runs; None for the caller's own folder.
        stdout: where its output and errors go, as `subprocess.Popen` takes it.

    Raises:
        OSError: no process could be made. A program that is missing is no such error: it ends with exit code 1
            and a line that says so.
    """
    return subprocess.Popen(  # noqa: S603 the callers' own programs
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *argv],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process made by `spawn` and all that it started, at once; also when itself has ended already."""
    with suppress(ProcessLookupError, PermissionError):  # macOS says "not permitted" of a group of zombies
        os.killpg(process.pid, signal.SIGKILL)


def last_lines(log_path: Path) -> list[str]:
    """Give the last few lines of a log file; none where there is no such file."""
    try:
        with log_path.open("rb") as file:
            file.seek(max(0, log_path.stat().st_size - _LAST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-_LAST_LINES:]


class Supervisor:
    """Keeps programs running between ``with`` and its end, which stops them all in reverse order.

    Within it SIGINT, SIGTERM and SIGHUP raise ``KeyboardInterrupt`` in the main thread, which has to be the one that
    enters. The first signal while it stops kills what is left at once.
    """

    def __init__(self, screen: IO[str] | None = None) -> None:
        """Make one that shows the programs' output on ``screen``; None for standard output."""
        self._screen = _Screen(sys.stdout if screen is None else screen)
        self._children: list[_Child] = []
        #: Guards the list; the keeper alone touches what is in it.
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        # Plain flags: a signal handler must not wait for a lock.
        self._stopping = False
        self._interrupted = False
        self._killing = False
        self._old_handlers: dict[signal.Signals, signal.Handlers | Callable[..., object] | int | None] = {}
        self._keeper = threading.Thread(target=self._keep, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        self._old_handlers = {number: signal.signal(number, self._on_signal) for number in _STOP_SIGNALS}
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def start(self, program: Program, *, ready_within_s: float = 60) -> None:
        """Start a program and wait until it is ready.

        Args:
            program: with a name that no other one has.
            ready_within_s: seconds until a program that says when it is ready has to be.

        Raises:
            CannotStart: this or another program cannot start; in one line with what it wrote last.
        """
        child = _Child(program, self._screen)
        with self._lock:
            if any(other.program.name == program.name for other in self._children):
                raise ValueError(f"there is a program named {program.name} already")
            self._children.append(child)
        deadline = time.monotonic() + ready_within_s
        while not child.is_ready():
            self._raise_failure()
            if child.has_ended_for_good():
                raise CannotStart(child.describe_failure(f"ended before it was ready ({child.how_it_ended()})"))
            if time.monotonic() >= deadline:
                raise CannotStart(child.describe_failure(f"is not ready after {ready_within_s:g} s"))
            time.sleep(_LOOK_EVERY_S)
        child.was_ready = program.ready is not None

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait, which is what keeps the programs running, for so many seconds; None until a signal comes.

        Raises:
            CannotStart: a program cannot start; in one line with what it wrote last.
            KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP came.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._raise_failure()
            if deadline is not None and time.monotonic() >= deadline:
                return
            time.sleep(_LOOK_EVERY_S)

    def is_running(self, name: str) -> bool:
        """Say whether the program of that name runs now."""
        with self._lock:
            return any(child.program.name == name and child.is_running() for child in self._children)

    def pid_of(self, name: str) -> int | None:
        """Return the process id of the program of that name; None while it does not run."""
        with self._lock:
            return next((child.pid for child in self._children if child.program.name == name), None)

    def stop(self) -> None:
        """Stop every program, the last started first, and wait until they and all that they started are gone."""
        self._stopping = True
        # Wakes up for signals. The time is bounded: each child is killed after its grace.
        self._keeper.join()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            self._killing = True
        elif not self._interrupted:
            self._interrupted = True
            raise KeyboardInterrupt
        else:  # on the way from the first one to `stop`, which must not be kept from being reached
            self._killing = True

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _keep(self) -> None:
        try:
            while not self._stopping:
                for child in self._all():
                    child.look(time.monotonic())
                    if child.cannot_start and self._failure is None:
                        deaths = f"died {MAX_FIRST_DEATHS} times ({child.how_it_ended()})"
                        self._failure = CannotStart(child.describe_failure(deaths))
                time.sleep(_LOOK_EVERY_S)
        except BaseException as error:  # noqa: BLE001 it belongs to the main thread, which raises it
            self._failure = error
        finally:
            for child in reversed(self._all()):
                child.stop(lambda: self._killing)

    def _all(self) -> "list[_Child]":
        with self._lock:
            return list(self._children)


class _Child:
    """One program's process, and the next one after its death. Changed by the keeper alone, but for ``was_ready``."""

    def __init__(self, program: Program, screen: "_Screen") -> None:
        self.program = program
        self.was_ready = False
        self.cannot_start = False
        self._screen = screen
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._started_at = 0.0
        self._starts_at = 0.0
        self._exit_code: int | None = None
        self._has_started = False
        self._has_ended_for_good = False
        #: Deaths in a row, without having run for long in between.
        self._deaths = 0
        self._has_settled = False
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        screen.make_room(program.name)

    def look(self, now: float) -> None:
        """Start it if it is due, and note it if it has died. ``now`` in seconds of the monotonic clock."""
        if self._process is None:
            if now >= self._starts_at and not self.has_ended_for_good() and not self.cannot_start:
                self._start(now)
        elif self._process.poll() is not None:
            self._note_death(now)
        elif now - self._started_at >= SETTLED_S:
            self._has_settled = True
            self._deaths = 0

    def stop(self, is_urgent: Callable[[], bool]) -> None:
        """Ask it to end, and kill it after its grace or as soon as that is urgent."""
        process = self._process
        if process is None:
            return
        # To the child alone: a program with processes of its own ends them in its own order.
        process.terminate()
        deadline = time.monotonic() + self.program.grace_s
        while process.poll() is None and time.monotonic() < deadline and not is_urgent():
            time.sleep(_LOOK_EVERY_S)
        if process.poll() is None:
            self._tell("killed" if is_urgent() else f"killed: did not end within {self.program.grace_s:g} s")
        self._clear(process)

    def is_running(self) -> bool:
        """Say whether its process lives now."""
        process = self._process
        return process is not None and process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process's id; None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def is_ready(self) -> bool:
        """Say whether it does its work or, where it cannot tell, has been started."""
        if self.program.ready is None:
            return self._has_started
        return self.is_running() and self.program.ready()

    def has_ended_for_good(self) -> bool:
        """Say whether it has ended and is not to be started again."""
        return self._has_ended_for_good

    def how_it_ended(self) -> str:
        """Say with which exit code, or by which signal, it ended last."""
        code = self._exit_code
        if code is None:
            return "no process could be made"
        return f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"

    def describe_failure(self, what: str) -> str:
        """Give the one line of an error: who, what, what it wrote last and where the rest is."""
        path = self.program.log_path
        lines = list(self._lines) if path is None else last_lines(path)
        written = f": {' / '.join(line.strip() for line in lines)}" if lines else ""
        return f"{self.program.name} {what}{written}" + (f" (all of it in {path})" if path else "")

    def _start(self, now: float) -> None:
        program = self.program
        self._started_at = now
        try:
            if program.log_path is None:
                process = spawn(program.argv, env=program.env, cwd=program.cwd, stdout=subprocess.PIPE)
                self._reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
                self._reader.start()
            else:
                with program.log_path.open("ab") as log:
                    process = spawn(program.argv, env=program.env, cwd=program.cwd, stdout=log)
        except OSError as error:
            self._lines.append(str(error))
            self._note_death(now)
        else:
            self._process = process
            self._has_started = True

    def _note_death(self, now: float) -> None:
        if self._process is not None:
            self._clear(self._process)
        self._deaths += 1
        if not self.program.restart:
            self._has_ended_for_good = True
            self._tell(f"ended ({self.how_it_ended()})")
        elif not self.was_ready and not self._has_settled and self._deaths >= MAX_FIRST_DEATHS:
            self.cannot_start = True
        else:
            delay_s = BACKOFF_S[min(self._deaths, len(BACKOFF_S)) - 1]
            self._starts_at = now + delay_s
            self._tell(f"ended ({self.how_it_ended()}), starts again in {delay_s:g} s")

    def _clear(self, process: "subprocess.Popen[bytes]") -> None:
        """Leave nothing of a process: not itself, nor what it started, nor the pipe."""
        kill_group(process)
        self._exit_code = process.wait()
        self._process = None
        if self._reader is not None:
            # Its pipe ends with the group, unless one of them has left it and is beyond us.
            self._reader.join(_READER_TIMEOUT_S)
            self._reader = None

    def _read(self, output: IO[bytes]) -> None:
        with output:
            while line := output.readline(_MAX_LINE_BYTES):
                text = line.decode(errors="replace").rstrip()
                if text:
                    self._lines.append(text)
                self._tell(text)

    def _tell(self, text: str) -> None:
        self._screen.write(self.program.name, text)


class _Screen:
    """Lines of several programs on one screen, each behind its program's name."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._names: list[str] = []
        # https://no-color.org
        self._has_colours = stream.isatty() and not os.environ.get("NO_COLOR")

    def make_room(self, name: str) -> None:
        """Make the names' column wide enough for this one."""
        with self._lock:
            self._names.append(name)

    def write(self, name: str, text: str) -> None:
        """Write one line. A screen that is gone, such as a closed terminal, is no reason to stop."""
        with self._lock:
            label = name.ljust(max(_NAME_COLUMNS, *(len(other) for other in self._names))) + "|"
            if self._has_colours:
                colour = _COLOURS[self._names.index(name) % len(_COLOURS)]
                label = f"{colour}{label}{_NO_COLOUR}"
            with suppress(OSError, ValueError):
                self._stream.write(f"{label} {text}\n")
                self._stream.flush()
