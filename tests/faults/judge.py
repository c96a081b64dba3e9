"""The judge of the fault matrix: what was promised against what came of it. No I/O.

A delivery is told by ``(number of the event, path of the webhook)``, which producer, receiver and logs know from the
event itself, not by an id that the product makes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

#: A delivery: the event's number, and the path at which its webhook's receiver listens.
Key = tuple[int, str]

#: ``attempt.error_kind`` of the log of an attempt that its worker did not survive; whoever repeats it writes that log.
#: Spelt out, not the product's own constant: what people find in the logs is judged.
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Receipts:
    """What the receiver counted of one delivery."""

    ok: int = 0
    failed: int = 0
    first_ok_at: float = 0.0
    ids: Collection[str] = ()


@dataclass(slots=True)
class Logged:
    """What the logs say of one delivery."""

    succeeded: int = 0
    #: The retry number of each failed log but the interrupted ones: such an attempt is made again under its number.
    failed: list[int] = field(default_factory=list)
    interrupted: int = 0

    @property
    def count(self) -> int:
        """How many logs there are."""
        return self.succeeded + len(self.failed) + self.interrupted

    def note(self, retry: int, attempt: Mapping[str, Any]) -> None:
        """Count a log.

        Args:
            retry: the attempt's number.
            attempt: of the log's sub-document of that name, ``outcome`` and ``error_kind``.
        """
        if attempt["outcome"] == "success":
            self.succeeded += 1
        elif attempt["error_kind"] == INTERRUPTED:
            self.interrupted += 1
        else:
            self.failed.append(retry)


@dataclass(frozen=True)
class Evidence:
    """All that is known when nothing moves any more, or the time is up."""

    #: What was promised.
    expected: Collection[Key]
    receipts: Mapping[Key, Receipts]
    logs: Mapping[Key, Logged]
    #: Set aside where an operator sees them.
    dead: Collection[Key]
    #: Deliveries that the ledger still owes.
    owed: Collection[Key]
    #: Messages that Redis still holds, wherever.
    queued: int
    max_retries: int
    #: Deliveries that were to succeed in this order, each line for itself.
    lines: Sequence[Sequence[Key]] = ()


@dataclass(frozen=True)
class Verdict:
    """What came of it. Keys are listed, not only counted: they are what to look for in the workers' logs."""

    expected: int
    lost: list[Key]
    stuck: int
    repeats: int
    #: Received, but no log tells of it.
    unlogged: list[Key]
    #: Received more often than there are logs, so that some attempt is on no record.
    underlogged: list[Key]
    #: Whose attempts are logged as interrupted, once for each such log.
    interrupted: list[Key]
    #: Repeated under another ``webhook-id``.
    renamed: list[Key]
    #: Of an ordered webhook, and came before an earlier one.
    disordered: list[Key]
    #: Ended with all their attempts failed.
    given_up: int
    dead: int

    def faults(self, bound: int, underlogged_why: str = "") -> list[str]:
        """Say in words what must not be; empty when all is well.

        Args:
            bound: how many repeats the fault explains: attempts in flight. So many may be logged as interrupted, too.
            underlogged_why: why a request may have come of which no log tells; empty where each must have its log.
                Such requests count as repeats, so the bound holds for them, too.
        """
        found = []
        if not self.expected:
            found.append("nothing was accepted, so nothing is shown")
        if self.lost:
            found.append(f"{len(self.lost)} lost: {self.lost[:5]}")
        if self.dead:
            found.append(f"{self.dead} became dead letters, though no message was at fault")
        if self.stuck:
            found.append(f"{self.stuck} stuck")
        if self.repeats > bound:
            found.append(f"{self.repeats} repeats, where {bound} are explained")
        if len(self.interrupted) > bound:
            found.append(
                f"{len(self.interrupted)} logged as interrupted, where {bound} are explained: {self.interrupted[:5]}"
            )
        if self.unlogged:
            found.append(f"{len(self.unlogged)} received but not logged: {self.unlogged[:5]}")
        if self.underlogged and not underlogged_why:
            found.append(f"{len(self.underlogged)} received more often than logged: {self.underlogged[:5]}")
        if self.renamed:
            found.append(f"{len(self.renamed)} came under more than one webhook-id: {self.renamed[:5]}")
        if self.disordered:
            found.append(f"{len(self.disordered)} came before an earlier one: {self.disordered[:5]}")
        return found


def judge(evidence: Evidence) -> Verdict:
    """Hold what was promised against what came of it.

    A delivery that is still owed at the end is stuck; it is not lost as well. A request counts as a repeat when it
    came after a 200, or failed without a log of its own: then its worker died and it was made again. The log of an
    interrupted attempt, which its repeat leaves, does not make it less of a repeat.
    """
    all_failed = set(range(evidence.max_retries + 1))
    owed, dead = set(evidence.owed), set(evidence.dead)
    lost, unlogged, given_up = [], [], 0
    for key in sorted(evidence.expected):
        receipts, logged = evidence.receipts.get(key, Receipts()), evidence.logs.get(key, Logged())
        if receipts.ok:
            if not logged.succeeded and key not in owed:
                unlogged.append(key)
        elif set(logged.failed) >= all_failed:
            given_up += 1
        elif key not in owed and key not in dead:
            lost.append(key)
    # What is owed still may be on its way, and what is unlogged need not be named twice.
    named = owed.union(unlogged)
    underlogged = [
        key
        for key, receipts in evidence.receipts.items()
        if key not in named and receipts.ok + receipts.failed > evidence.logs.get(key, Logged()).count
    ]
    return Verdict(
        expected=len(set(evidence.expected)),
        lost=lost,
        # A message of a delivery that is owed is the same trouble, not another.
        stuck=max(len(owed), evidence.queued),
        repeats=sum(_count_repeats(r, evidence.logs.get(key, Logged())) for key, r in evidence.receipts.items()),
        unlogged=unlogged,
        underlogged=underlogged,
        interrupted=[key for key, logged in evidence.logs.items() for _ in range(logged.interrupted)],
        renamed=[key for key, receipts in evidence.receipts.items() if len(set(receipts.ids)) > 1],
        disordered=[key for line in evidence.lines for key in _find_disordered(line, evidence.receipts)],
        given_up=given_up,
        dead=len(dead),
    )


def _find_disordered(line: Sequence[Key], receipts: Mapping[Key, Receipts]) -> list[Key]:
    came = [(receipts[key].first_ok_at, key) for key in line if key in receipts and receipts[key].ok]
    return [key for (before, _), (at, key) in pairwise(came) if at < before]


def _count_repeats(receipts: Receipts, logged: Logged) -> int:
    return max(0, receipts.ok - 1) + max(0, receipts.failed - len(logged.failed))
