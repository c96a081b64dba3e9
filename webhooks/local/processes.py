"""Keeps named programs running: starts them, shows their output, and restarts those that end.

One thread, the keeper, starts and ends every child, because Linux kills a child with ``PR_SET_PDEATHSIG`` when the
*thread* that started it ends. ``KeyboardInterrupt`` reaches only the main thread, so it never interrupts a start.
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
from types import FrameType
from typing import IO, Self

from webhooks.errors import CannotStart

#: Seconds before the first restart, the second, …; the last value repeats.
BACKOFF_S: tuple[float, ...] = (1, 2, 4, 8, 16, 30)
#: After a run of this many seconds the back-off starts again from its first value.
SETTLED_S = 60.0
#: After this many deaths, before it was ready or settled for the first time, a program counts as unable to start.
MAX_FIRST_DEATHS = 5

#: Seconds between two polls of the children.
_POLL_INTERVAL_S = 0.05
#: Seconds to wait for the last lines of an ended program.
_READER_TIMEOUT_S = 2.0
#: Longer lines are split, so that a program without line ends cannot fill the memory.
_MAX_LINE_BYTES = 16 * 1024
#: Last lines of output that an error quotes, and the bytes at the end of a log file that are searched for them.
_LAST_LINES = 3
_LAST_BYTES = 8 * 1024
#: Minimum width of the names on the screen.
_NAME_COLUMNS = 7
#: Escape sequences for the names: cyan, yellow, green, magenta, blue.
_COLOURS = ("\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[35m", "\x1b[34m")
_NO_COLOUR = "\x1b[0m"
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Runs in the child, then becomes the program: it asks Linux to kill the child with its parent. Popen's ``preexec_fn``
#: can deadlock in a process with threads. The parent's id shows whether the parent ended before the request. Python
#: ignores SIGPIPE, which the program must not inherit.
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

    #: Shown before its lines and in errors; unique within a supervisor.
    name: str
    argv: Sequence[str]
    #: The whole environment; never shown.
    env: Mapping[str, str] = field(repr=False)
    #: Working directory; None for the supervisor's.
    cwd: Path | None = None
    #: Returns whether it is ready, for `Supervisor.start` to wait for; None if running is enough.
    ready: Callable[[], bool] | None = None
    #: Seconds from the request to stop to the kill.
    grace_s: float = 10
    #: Where its output is appended; None for the screen.
    log_path: Path | None = None
    #: Whether to restart it when it ends.
    restart: bool = True


def spawn(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, stdout: int | IO[bytes] | None
) -> "subprocess.Popen[bytes]":
    """Start a process in its own session, so that the terminal's Ctrl-C does not reach it.

    On Linux the kernel kills it when the calling *thread* ends. A missing program ends with exit code 1 and a message.

    Args:
        argv: the program, looked up on the PATH of ``env``, and its arguments.
        env: the whole environment.
        cwd: working directory; None for the caller's.
        stdout: for output and errors, as `subprocess.Popen` takes it.

    Raises:
        OSError: the process could not be created.
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
    """Kill a process made by `spawn` and all its descendants, also when the process itself has ended."""
    with suppress(ProcessLookupError, PermissionError):  # macOS says "not permitted" of a group of zombies
        os.killpg(process.pid, signal.SIGKILL)


def last_lines(log_path: Path) -> list[str]:
    """Return the last few lines of a log file; none if it does not exist."""
    try:
        with log_path.open("rb") as file:
            file.seek(max(0, log_path.stat().st_size - _LAST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-_LAST_LINES:]


class Supervisor:
    """Context manager that keeps programs running, and at its end stops them in reverse order.

    Inside, SIGINT, SIGTERM and SIGHUP raise ``KeyboardInterrupt`` in the main thread, which has to enter it. A signal
    while it stops kills all remaining programs.
    """

    def __init__(self, screen: IO[str] | None = None) -> None:
        """Show the programs' output on ``screen``; None for standard output."""
        self._screen = _Screen(sys.stdout if screen is None else screen)
        #: Only appended to, which needs no lock.
        self._children: list[_Child] = []
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

    def __exit__(self, *_: object) -> None:
        self.stop()
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def start(self, program: Program, *, ready_within_s: float = 60) -> None:
        """Start a program and wait until it is ready.

        Raises:
            CannotStart: this or another program cannot start; one line with its last output.
        """
        if any(other.program.name == program.name for other in self._children):
            raise ValueError(f"there is a program named {program.name} already")
        child = _Child(program, self._screen)
        self._children.append(child)
        deadline = time.monotonic() + ready_within_s
        while not child.is_ready():
            self._raise_failure()
            if child.has_ended_for_good:
                raise CannotStart(child.describe_failure(f"ended before it was ready ({child.how_it_ended()})"))
            if time.monotonic() >= deadline:
                raise CannotStart(child.describe_failure(f"is not ready after {ready_within_s:g} s"))
            time.sleep(_POLL_INTERVAL_S)
        if program.ready is not None:
            child.has_worked = True

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for a number of seconds; None waits until a signal comes.

        Raises:
            CannotStart: a program cannot start; one line with its last output.
            KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP came.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._raise_failure()
            if deadline is not None and time.monotonic() >= deadline:
                return
            time.sleep(_POLL_INTERVAL_S)

    def is_running(self, name: str) -> bool:
        """Return whether the program of that name runs now."""
        return self.pid_of(name) is not None

    def pid_of(self, name: str) -> int | None:
        """Return the process id of the program of that name; None while it does not run."""
        return next((child.pid for child in self._children if child.program.name == name), None)

    def stop(self) -> None:
        """Stop all programs, the last started first, and wait until they and their descendants are gone."""
        self._stopping = True
        # Bounded, because each child is killed after its grace; signals interrupt the wait.
        self._keeper.join()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stopping or self._interrupted:  # a second exception must not keep the first from reaching `stop`
            self._killing = True
        else:
            self._interrupted = True
            raise KeyboardInterrupt

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _keep(self) -> None:
        try:
            while not self._stopping:
                for child in self._children:
                    child.check(time.monotonic())
                    if child.cannot_start and self._failure is None:
                        deaths = f"died {MAX_FIRST_DEATHS} times ({child.how_it_ended()})"
                        self._failure = CannotStart(child.describe_failure(deaths))
                time.sleep(_POLL_INTERVAL_S)
        except BaseException as error:  # noqa: BLE001 the main thread raises it
            self._failure = error
        finally:
            for child in reversed(self._children):
                child.stop(lambda: self._killing)


class _Child:
    """A program's current process, and its restarts. Only the keeper changes it, except for ``has_worked``."""

    def __init__(self, program: Program, screen: "_Screen") -> None:
        self.program = program
        #: Whether it was ready or settled once.
        self.has_worked = False
        self.cannot_start = False
        #: Whether it has ended and will not be restarted.
        self.has_ended_for_good = False
        self._screen = screen
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._started_at = 0.0
        self._starts_at = 0.0
        self._exit_code: int | None = None
        self._has_started = False
        #: Deaths since it last settled.
        self._deaths = 0
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        screen.names.append(program.name)

    def check(self, now: float) -> None:
        """Start it if it is due, and note its death. ``now`` is in seconds of the monotonic clock."""
        if self._process is None:
            if now >= self._starts_at and not self.has_ended_for_good and not self.cannot_start:
                self._start(now)
        elif self._process.poll() is not None:
            self._note_death(now)
        elif now - self._started_at >= SETTLED_S:
            self.has_worked = True
            self._deaths = 0

    def stop(self, is_urgent: Callable[[], bool]) -> None:
        """Terminate it, and kill it after its grace or once that is urgent."""
        process = self._process
        if process is None:
            return
        # Only the child itself: a program with child processes ends them in its own order.
        process.terminate()
        deadline = time.monotonic() + self.program.grace_s
        while process.poll() is None and time.monotonic() < deadline and not is_urgent():
            time.sleep(_POLL_INTERVAL_S)
        if process.poll() is None:
            self._print("killed" if is_urgent() else f"killed: did not end within {self.program.grace_s:g} s")
        self._clean_up(process)

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def is_ready(self) -> bool:
        if self.program.ready is None:
            return self._has_started
        return self.pid is not None and self.program.ready()

    def how_it_ended(self) -> str:
        code = self._exit_code
        if code is None:
            return "no process could be made"
        return f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"

    def describe_failure(self, what: str) -> str:
        """Return an error's one line: the program, what happened, its last output and the log file."""
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
            self._clean_up(self._process)
        self._deaths += 1
        if not self.program.restart:
            self.has_ended_for_good = True
            self._print(f"ended ({self.how_it_ended()})")
        elif not self.has_worked and self._deaths >= MAX_FIRST_DEATHS:
            self.cannot_start = True
        else:
            delay_s = BACKOFF_S[min(self._deaths, len(BACKOFF_S)) - 1]
            self._starts_at = now + delay_s
            self._print(f"ended ({self.how_it_ended()}), starts again in {delay_s:g} s")

    def _clean_up(self, process: "subprocess.Popen[bytes]") -> None:
        kill_group(process)
        self._exit_code = process.wait()
        self._process = None
        if self._reader is not None:
            # The pipe ends with the group, unless a descendant has left it.
            self._reader.join(_READER_TIMEOUT_S)
            self._reader = None

    def _read(self, output: IO[bytes]) -> None:
        with output:
            while line := output.readline(_MAX_LINE_BYTES):
                text = line.decode(errors="replace").rstrip()
                if text:
                    self._lines.append(text)
                self._print(text)

    def _print(self, text: str) -> None:
        self._screen.write(self.program.name, text)


class _Screen:
    """Writes lines of several programs, each after its program's name."""

    def __init__(self, stream: IO[str]) -> None:
        self.names: list[str] = []
        self._stream = stream
        self._lock = threading.Lock()
        # https://no-color.org
        self._has_colours = stream.isatty() and not os.environ.get("NO_COLOR")

    def write(self, name: str, text: str) -> None:
        with self._lock:
            label = name.ljust(max(_NAME_COLUMNS, *(len(other) for other in self.names))) + "|"
            if self._has_colours:
                colour = _COLOURS[self.names.index(name) % len(_COLOURS)]
                label = f"{colour}{label}{_NO_COLOUR}"
            with suppress(OSError, ValueError):  # a closed terminal must not stop the programs
                self._stream.write(f"{label} {text}\n")
                self._stream.flush()
