"""How the rows of the fault matrix are run and shown.

A row is one fault (or two at once) under steady load. `run_row` sets its stage, strikes, waits until nothing is owed,
and has it judged. Rows wait most of their time, for what a dead worker held to come back; so several run at a time,
but only some of them load the machine: `Size.slots`.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.faults.evidence import dump, gather
from tests.faults.harness import Cancelled, Stage
from tests.faults.judge import Verdict, judge
from tests.faults.rows import FOOTNOTE, Row
from tests.faults.sizes import Size

#: Seconds for a row to settle, whatever happens: the worst is a backlog on a machine that does other things.
_SETTLED_WITHIN_S = 600.0


@dataclass(frozen=True)
class Result:
    """What came of a row."""

    row: Row
    verdict: Verdict
    bound: int
    #: Seconds from the fault's end until the last delivery that was accepted before it had come; 0 when none was late.
    recovery_s: float
    #: Seconds from the fault's end until nothing was owed and no message was left.
    settled_s: float
    refusals: int
    died_by_themselves: int
    #: Deliveries accepted per second of load.
    per_s: float

    @property
    def faults(self) -> list[str]:
        """What must not be."""
        found = self.verdict.faults(self.bound, self.row.underlogged_why)
        if self.row.within_s is not None and self.recovery_s > self.row.within_s:
            found.append(f"the last one came after {self.recovery_s:.1f} s, where {self.row.within_s:g} s are promised")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        fields = {name: value for name, value in vars(self).items() if name not in ("row", "verdict")}
        return {"row": self.row.id, **fields, "verdict": asdict(self.verdict), "faults": self.faults}


class Slots(Protocol):
    """The few places under load: a semaphore of this process, or of all test processes."""

    def acquire(self, *, timeout: float) -> bool:
        """Take one within so many seconds; return whether that was possible."""
        ...

    def release(self) -> None:
        """Give one back."""
        ...


def run_matrix(
    rows: Iterable[Row], size: Size, *, tell: Callable[[str], None], cancelled: threading.Event
) -> dict[str, Future[Result]]:
    """Start rows, each in a thread of its own, and return at once.

    Args:
        rows: which ones, started in this order.
        size: how much of everything.
        tell: gets lines of progress, from many threads.
        cancelled: set it to have all of them end soon.
    """
    folder = Path(tempfile.mkdtemp(prefix="webhooks-faults-"))
    slots = threading.Semaphore(size.slots)
    # A thread per row: the processes of a stage end with the thread that started them.
    pool = ThreadPoolExecutor(size.rows, "row")
    started = {row.id: pool.submit(_run_and_tidy, row, size, folder, slots, cancelled, tell) for row in rows}
    pool.shutdown(wait=False)
    return started


def _run_and_tidy(
    row: Row,
    size: Size,
    folder: Path,
    slots: Slots,
    cancelled: threading.Event,
    tell: Callable[[str], None],
) -> Result:
    try:
        result = run_row(row, size, folder / row.id, slots, cancelled, tell)
    except Cancelled:
        raise
    except BaseException as error:
        tell(f"{row.id}: {type(error).__name__}: {error}; see {folder / row.id}")
        raise
    if result.faults:
        tell(f"{row.id}: FAILED: {'; '.join(result.faults)}; see {folder / row.id}")
    else:
        tell(f"{row.id}: good, settled after {result.settled_s:.0f} s, {result.verdict.repeats} repeats")
        shutil.rmtree(folder / row.id)  # the logs are wanted when a row fails
        with suppress(OSError):
            folder.rmdir()  # when it was the last one
    return result


class _Slot:
    """One of the few places under load, given back once."""

    def __init__(self, slots: Slots, cancelled: threading.Event) -> None:
        while cancelled.is_set() or not slots.acquire(timeout=0.5):
            if cancelled.is_set():
                raise Cancelled
        self._slots: Slots | None = slots

    def release(self) -> None:
        """Give it back; no effect the second time."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.release()


def run_row(
    row: Row,
    size: Size,
    folder: Path,
    slots: Slots,
    cancelled: threading.Event,
    tell: Callable[[str], None],
) -> Result:
    """Run one row, start to finish; its processes end with it."""
    slot = _Slot(slots, cancelled)
    try:
        with Stage(
            folder,
            cancelled=cancelled,
            mongodb_timeout_s=size.mongodb_timeout_s,
            settings=row.settings,
            webhooks=row.webhooks,
            has_stepped_clocks=row.has_stepped_clocks,
            can_drop_replies=row.can_drop_replies,
        ) as stage:
            tell(f"{row.id}: load")
            started_at = time.monotonic()
            stage.start_load(row.events_per_s or size.events_per_s, row.ways)
            stage.run_for(size.before_s)
            tell(f"{row.id}: fault")
            row.strike(stage, size)
            stage.run_for(size.after_s)
            stage.stop_load()
            load_s = time.monotonic() - started_at
            slot.release()
            tell(f"{row.id}: {len(stage.accepted)} events accepted; waiting until nothing is owed")
            # What was held without a lease comes back after the visibility timeout, may then find a claim and be looked
            # at once more; what is lost besides, the sweep finds a little later.
            derived = stage.derived
            stage.settle(2 * (derived.visibility_timeout_s + derived.claim_s) + 30, _SETTLED_WITHIN_S)
            return _conclude(row, size, stage, load_s)
    finally:
        slot.release()


def _conclude(row: Row, size: Size, stage: Stage, load_s: float) -> Result:
    ended_at = stage.fault_ended_at
    if ended_at is None:
        raise RuntimeError(f"row {row.id} does not say when its fault ended")
    settled_s = time.time() - ended_at
    evidence = gather(stage, stage.promised(only_safe=row.counts_only_safe))
    early = {number for number, _, accepted_at in stage.accepted if accepted_at <= ended_at}
    came_at = {
        key: evidence.receipts[key].first_ok_at
        for key in evidence.expected
        if key[0] in early and key in evidence.receipts
    }
    verdict, bound = judge(evidence), row.bound(size)
    result = Result(
        row=row,
        verdict=verdict,
        bound=bound,
        recovery_s=max(0.0, max(came_at.values(), default=0.0) - ended_at),
        settled_s=settled_s,
        refusals=stage.refusals,
        died_by_themselves=stage.died_by_themselves,
        per_s=len(stage.accepted) * len(row.webhooks) / load_s,
    )
    if result.faults:
        repeated = [key for key, receipts in evidence.receipts.items() if receipts.ok > 1]
        wrong = [*verdict.lost, *verdict.unlogged, *verdict.underlogged, *verdict.renamed, *verdict.disordered]
        wrong += verdict.interrupted
        late = [key for key, at in came_at.items() if row.within_s is not None and at - ended_at > row.within_s]
        dump(stage, evidence, [*wrong, *late, *evidence.owed, *repeated])
    return result


# ── Showing ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def describe(text: str, size: Size) -> str:
    """Fill a size's numbers into a row's words."""
    return text.format(**asdict(size))


def to_line(result: Result, size: Size) -> str:
    """Return a row of the table."""
    verdict = result.verdict
    cells = [
        describe(result.row.fault, size),
        f"{verdict.expected:,}",
        str(len(verdict.lost)),
        str(verdict.stuck),
        str(verdict.repeats),
        str(result.bound),
        f"{result.recovery_s:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def to_markdown(lines: Iterable[str]) -> str:
    """Return the table of these rows (`to_line`)."""
    head = [
        "| fault | deliveries accepted | lost | stuck | repeats | at most | last one came after |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    return "\n".join([*head, *lines, "", FOOTNOTE])
