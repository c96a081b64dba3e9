"""The judge of the fault matrix: what was promised against what came of it. No I/O.

A delivery is told by ``(number of the event, path of the webhook)``, which producer, receiver and logs know from the
event itself, not by an id that the product makes.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

#: A delivery: the event's number, and the path at which its webhook's receiver listens.
Key = tuple[int, str]


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
    #: The retry number of each failed log.
    failed: list[int] = field(default_factory=list)


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


@dataclass(frozen=True)
class Verdict:
    """What came of it. Keys are listed, not only counted: they are what to look for in the workers' logs."""

    expected: int
    lost: list[Key]
    stuck: int
    repeats: int
    #: Received, but no log tells of it.
    unlogged: list[Key]
    #: Repeated under another ``webhook-id``.
    renamed: list[Key]
    #: Ended with all their attempts failed.
    given_up: int
    dead: int

    def faults(self, bound: int) -> list[str]:
        """Say in words what must not be; empty when all is well.

        Args:
            bound: how many repeats the fault explains.
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
        if self.unlogged:
            found.append(f"{len(self.unlogged)} received but not logged: {self.unlogged[:5]}")
        if self.renamed:
            found.append(f"{len(self.renamed)} came under more than one webhook-id: {self.renamed[:5]}")
        return found


def judge(evidence: Evidence) -> Verdict:
    """Hold what was promised against what came of it.

    A delivery that is still owed at the end is stuck; it is not lost as well. A request counts as a repeat when it
    came after a 200, or failed without a log: then its worker died and it was made again.
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
    return Verdict(
        expected=len(set(evidence.expected)),
        lost=lost,
        # A message of a delivery that is owed is the same trouble, not another.
        stuck=max(len(owed), evidence.queued),
        repeats=sum(_count_repeats(r, evidence.logs.get(key, Logged())) for key, r in evidence.receipts.items()),
        unlogged=unlogged,
        renamed=[key for key, receipts in evidence.receipts.items() if len(set(receipts.ids)) > 1],
        given_up=given_up,
        dead=len(dead),
    )


def _count_repeats(receipts: Receipts, logged: Logged) -> int:
    return max(0, receipts.ok - 1) + max(0, receipts.failed - len(logged.failed))
