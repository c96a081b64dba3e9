"""CPU time and memory of processes and of the machine, from /proc."""

import os
import sys
import time
from collections.abc import Collection, Iterable
from pathlib import Path

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: Places in /proc/PID/stat, counted from behind the name, which may hold anything.
_SESSION, _UTIME, _STIME, _CUTIME, _CSTIME = 3, 11, 12, 13, 14
#: Places in the first line of /proc/stat, behind its name.
_IDLE, _IOWAIT, _IRQ, _SOFTIRQ, _GUEST = 3, 4, 5, 6, 8
#: Seconds for which the members of a session are taken to be the same.
_SAME_FOR_S = 1.0


class Cpu:
    """CPU time of sessions: of processes that were started as leaders of one, and of all that these started."""

    def __init__(self) -> None:
        self._members: dict[frozenset[int], tuple[float, list[int]]] = {}

    def used_s(self, leaders: Collection[int]) -> float:
        """Return the CPU seconds that sessions have used until now, by the processes' ids of their leaders."""
        key = frozenset(leaders)
        at, members = self._members.get(key, (float("-inf"), []))
        if time.monotonic() - at > _SAME_FOR_S:
            members = members_of(key)
            self._members[key] = (time.monotonic(), members)
        return sum(_cpu_s(pid, _UTIME, _STIME, _CUTIME, _CSTIME) for pid in members)


def members_of(leaders: Collection[int]) -> list[int]:
    """Return the processes of the sessions with these leaders."""
    return [
        int(entry.name)
        for entry in _PROC.iterdir()
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) and int(fields[_SESSION]) in leaders
    ]


def own_cpu_s() -> float:
    """Return the CPU seconds that this process has used, without those that it started."""
    return _cpu_s(os.getpid(), _UTIME, _STIME)


def machine_cpu_s() -> float | None:
    """Return the CPU seconds that all processes used, or a host took from us; None where it has cores that we lack."""
    try:
        lines = (_PROC / "stat").read_text().splitlines()
    except OSError:
        return None
    if sum(line.startswith("cpu") for line in lines) - 1 != cores():
        return None
    spent = [int(ticks) for ticks in lines[0].split()[1 : _GUEST + 1]]  # guests count as user, too
    # Interrupts belong to no process: those of loopback are the benchmark's own.
    none = (_IDLE, _IOWAIT, _IRQ, _SOFTIRQ)
    return (sum(spent) - sum(spent[place] for place in none)) / _TICKS_PER_S


def cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def memory_bytes(pids: Iterable[int]) -> int:
    """Return the resident memory of processes (RSS); what they share counts for each."""
    pages = 0
    for pid in pids:
        try:
            pages += int((_PROC / str(pid) / "statm").read_text().split()[1])
        except (OSError, IndexError):  # it has ended
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """Return the memory that could be had without swapping."""
    for line in (_PROC / "meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_model() -> str:
    """Return what the processor calls itself; empty where it does not say."""
    try:
        text = (_PROC / "cpuinfo").read_text()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")


def _cpu_s(pid: int, *places: int) -> float:
    fields = _stat(pid)
    return sum(int(fields[place]) for place in places) / _TICKS_PER_S if fields else 0.0


def _stat(pid: int) -> list[str] | None:
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:  # it has ended
        return None
