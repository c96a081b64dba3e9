"""The supervisor with real processes: small shell and Python programs that do as they are told."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from webhooks.errors import CannotStart
from webhooks.local import processes as supervisor_module
from webhooks.local.processes import Program, Supervisor

DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "BACKOFF_S", (0.05, 0.1))


def poll(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.02)


def shell(name: str, script: str, **options) -> Program:
    return Program(name, ["sh", "-c", script], {"PATH": os.environ["PATH"]}, **options)


def run(*programs: Program) -> None:
    with Supervisor(io.StringIO()) as supervisor:
        for program in programs:
            supervisor.start(program)
        supervisor.wait()


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and only waits to be collected does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def pids_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_output_stands_behind_aligned_names_without_colours_off_a_terminal() -> None:
    screen = io.StringIO()
    with Supervisor(screen) as supervisor:
        supervisor.start(shell("worker", "echo one; echo two >&2; sleep 60"))
        supervisor.start(shell("long-name", "printf 'three'; exec >&- 2>&-; sleep 60"))
        poll("three lines", lambda: screen.getvalue().count("\n") == 3)
    lines = screen.getvalue().splitlines()
    assert {line.replace(" ", "") for line in lines} == {"worker|one", "worker|two", "long-name|three"}
    assert {line.index("|") for line in lines if line.startswith("long-name")} == {len("long-name")}


def test_output_is_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Terminal()
    with Supervisor(screen) as supervisor:
        supervisor.start(shell("worker", "echo one; sleep 60"))
        poll("a line", lambda: "one" in screen.getvalue())
    assert screen.getvalue() == "\x1b[36mworker |\x1b[0m one\n"


def test_output_goes_to_the_log_file_where_there_is_one(tmp_path: Path) -> None:
    screen = io.StringIO()
    log_path = tmp_path / "log"
    log_path.write_text("before\n")
    with Supervisor(screen) as supervisor:
        supervisor.start(shell("server", "echo now; sleep 60", log_path=log_path))
        poll("a line", lambda: log_path.read_text() == "before\nnow\n")
    assert screen.getvalue() == ""


def test_child_gets_its_own_environment_and_folder_and_nothing_else(tmp_path: Path) -> None:
    screen = io.StringIO()
    script = "import os; print(sorted(set(os.environ) - {'LC_CTYPE', '__CF_USER_TEXT_ENCODING'}), os.getcwd())"
    program = Program("child", [sys.executable, "-c", script], {"ONLY": "this"}, cwd=tmp_path, restart=False)
    with Supervisor(screen) as supervisor:
        supervisor.start(program)
        poll("its end", lambda: not supervisor.is_running("child") and "ended" in screen.getvalue())
    assert f"['ONLY'] {tmp_path.resolve()}" in screen.getvalue()


def test_start_waits_until_the_program_is_ready(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with Supervisor(io.StringIO()) as supervisor:
        supervisor.start(shell("slow", f"sleep 0.3; touch {flag}; sleep 60", ready=flag.exists))
        assert flag.exists()
        assert supervisor.is_running("slow")
        assert not supervisor.is_running("other")


def test_start_of_a_name_twice_is_refused() -> None:
    with Supervisor(io.StringIO()) as supervisor:
        supervisor.start(shell("one", "sleep 60"))
        with pytest.raises(ValueError, match="named one already"):
            supervisor.start(shell("one", "sleep 60"))


def test_program_that_dies_is_started_again(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    screen = io.StringIO()
    with Supervisor(screen) as supervisor:
        # More often than a program that cannot start may die: this one was ready once.
        supervisor.start(shell("worker", f"echo $$ >> {pids}; sleep 60", ready=pids.exists))
        for count in range(1, 8):
            poll(f"start {count}", lambda count=count: len(pids_in(pids)) == count)
            os.kill(pids_in(pids)[-1], signal.SIGKILL)
        poll("the next start", lambda: len(pids_in(pids)) == 8)
        supervisor.wait(0)
    assert "worker | ended (signal 9, Killed), starts again in 0.05 s" in screen.getvalue()
    assert "starts again in 0.1 s" in screen.getvalue()


def test_program_that_ran_for_long_is_started_again_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "SETTLED_S", 0.2)
    pids = tmp_path / "pids"
    screen = io.StringIO()
    with Supervisor(screen) as supervisor:
        supervisor.start(shell("worker", f"echo $$ >> {pids}; sleep 0.6"))
        poll("three starts", lambda: len(pids_in(pids)) == 3)
    assert screen.getvalue().count("starts again in 0.05 s") == 2


def test_dead_program_takes_along_what_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with Supervisor(io.StringIO()) as supervisor:
        supervisor.start(shell("worker", f"sleep 600 & echo $! >> {pids}; kill -9 $$"))
        poll("two starts", lambda: len(pids_in(pids)) >= 2)
        first = pids_in(pids)[0]
        poll("the end of the first one's child", lambda: not is_alive(first))


def test_stop_goes_in_reverse_order_and_lets_programs_end_by_themselves(tmp_path: Path) -> None:
    order = tmp_path / "order"
    order.touch()

    def program(name: str) -> Program:
        trap = f"trap 'sleep 0.2; echo {name} >> {order}; exit 0' TERM"
        script = f"{trap}; touch {tmp_path}/{name}; while :; do sleep 0.05; done"
        return shell(name, script, ready=(tmp_path / name).exists)

    with Supervisor(io.StringIO()) as supervisor:
        for name in ("first", "second", "third"):
            supervisor.start(program(name))
    assert order.read_text().split() == ["third", "second", "first"]


def test_stop_kills_after_the_grace_with_all_descendants(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    screen = io.StringIO()
    script = f"trap '' TERM; sleep 600 & echo $! >> {pids}; echo $$ >> {pids}; while :; do sleep 0.05; done"
    with Supervisor(screen) as supervisor:
        supervisor.start(shell("stubborn", script, ready=lambda: len(pids_in(pids)) == 2, grace_s=0.5))
        started = time.monotonic()
    assert 0.5 <= time.monotonic() - started < 5
    assert "killed: did not end within 0.5 s" in screen.getvalue()
    poll("both ends", lambda: not any(is_alive(pid) for pid in pids_in(pids)))


def test_program_that_cannot_start_is_one_clear_error_and_stops_the_others(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    good = shell("good", f"echo $$ > {pids}; sleep 600", ready=pids.exists)
    bad = shell("bad", "echo 'no licence'; echo 'giving up' >&2; exit 3")
    with pytest.raises(CannotStart) as caught:
        run(good, bad)
    assert str(caught.value) == "bad died 5 times (exit code 3): giving up / no licence / giving up"
    assert not is_alive(pids_in(pids)[0])


def test_program_that_cannot_start_is_told_by_start_too_and_names_its_log(tmp_path: Path) -> None:
    log_path = tmp_path / "bad.log"
    with pytest.raises(CannotStart) as caught:
        run(shell("bad", "echo 'no disk'; exit 3", ready=lambda: False, log_path=log_path))
    expected = f"bad died 5 times (exit code 3): no disk / no disk / no disk (all of it in {log_path})"
    assert str(caught.value) == expected


def test_program_that_is_missing_is_named() -> None:
    with pytest.raises(CannotStart, match="cannot run no-such-program: No such file"):
        run(Program("bad", ["no-such-program"], dict(os.environ)))


def test_program_in_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="gone"):
        run(shell("bad", "sleep 60", cwd=tmp_path / "gone"))


def test_program_that_is_not_ready_in_time_is_an_error() -> None:
    with (
        pytest.raises(CannotStart, match=r"^slow is not ready after 0\.2 s: waiting$"),
        Supervisor(io.StringIO()) as it,
    ):
        it.start(shell("slow", "echo waiting; sleep 60", ready=lambda: False), ready_within_s=0.2)


def test_program_without_restart_that_ends_before_it_is_ready_is_an_error() -> None:
    with pytest.raises(CannotStart, match=r"^once ended before it was ready \(exit code 4\): bye$"):
        run(shell("once", "echo bye; exit 4", ready=lambda: False, restart=False))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_wait(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    # `ready` is asked in the middle of `start`, in the main thread.
    with pytest.raises(KeyboardInterrupt):
        run(shell("worker", "sleep 600", ready=lambda: os.kill(os.getpid(), number) is None))
    assert signal.getsignal(number) is before


#: A process with a supervisor, for signals to the whole of it. Its program starts one more of its own.
SUPERVISED = """
import os, sys
from pathlib import Path
from webhooks.local.processes import Program, Supervisor
pids = Path(sys.argv[1])
script = f"{sys.argv[2]} sleep 600 & echo $! >> {pids}; echo $$ >> {pids}; while :; do sleep 0.05; done"
ready = lambda: pids.exists() and len(pids.read_text().split()) == 2
try:
    with Supervisor() as supervisor:
        supervisor.start(Program("worker", ["sh", "-c", script], dict(os.environ), ready=ready, grace_s=600))
        print("up", flush=True)
        supervisor.wait()
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def start_supervised(pids: Path, trap: str = "") -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, str(pids), trap], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    return process


def test_ctrl_c_in_a_terminal_stops_everything_once(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with start_supervised(pids) as process:
        # As a terminal does: to the whole group, of which the programs must not be.
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert (output, process.returncode) == ("stopped\n", 0)
    assert not any(is_alive(pid) for pid in pids_in(pids))


def test_second_ctrl_c_kills_at_once(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    asked = tmp_path / "asked"
    with start_supervised(pids, f"trap 'touch {asked}' TERM;") as process:
        os.kill(process.pid, signal.SIGINT)
        poll("the program is asked to end", asked.exists)
        assert process.poll() is None  # its grace is ten minutes
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert output.endswith("| killed\nstopped\n")
    assert not any(is_alive(pid) for pid in pids_in(pids))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_killed_supervisor_leaves_no_program_behind(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with start_supervised(pids) as process:
        grandchild, child = pids_in(pids)
        process.kill()
        process.wait()
        try:
            poll("the program's end", lambda: not is_alive(child))
        finally:
            # What a program starts itself is its own to end: the kernel's promise reaches no further.
            os.kill(grandchild, signal.SIGKILL)
