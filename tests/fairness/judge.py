"""What is made of what the receiver noted: rates, waits, and whether order was kept. No I/O.

All times are seconds of `time.monotonic`.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Arrival(NamedTuple):
    """One request, as the receiver noted it."""

    path: str
    #: The event's; -1 where the body had none.
    number: int
    arrived_at: float
    #: When it was answered, or whoever asked went away; None: it is open still.
    ended_at: float | None
    #: What it was answered; None: nothing.
    status: int | None
    #: When the event was handed in; None where the body did not say.
    sent_at: float | None
    webhook_id: str

    @property
    def is_ok(self) -> bool:
        """Whether it was answered with success."""
        return self.status == 200


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that so large a share of them does not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(share * len(ordered))) - 1] if ordered else math.nan


def rate_of(arrivals: Iterable[Arrival], since: float, until: float) -> float:
    """Return the arrivals per second within ``[since, until)``."""
    return sum(since <= arrival.arrived_at < until for arrival in arrivals) / (until - since)


def waits_of(sent: Mapping[int, float], arrivals: Iterable[Arrival], since: float, until: float) -> list[float]:
    """Return how long the events that were handed in within ``[since, until)`` took to arrive for the first time.

    Args:
        sent: when each event was handed in, by number.
        arrivals: in any order.
        since: of the handing in.
        until: likewise.

    Returns:
        Seconds, one for each such event; infinity for one that did not arrive.
    """
    first: dict[int, float] = {}
    for arrival in arrivals:
        first[arrival.number] = min(arrival.arrived_at, first.get(arrival.number, math.inf))
    return [first.get(number, math.inf) - at for number, at in sent.items() if since <= at < until]


def most_in_flight(arrivals: Iterable[Arrival], since: float = -math.inf, until: float = math.inf) -> int:
    """Return how many requests were open at one time, at most, within ``[since, until)``."""
    steps: list[tuple[float, int]] = []
    for arrival in arrivals:
        ended_at = math.inf if arrival.ended_at is None else arrival.ended_at
        if arrival.arrived_at < until and ended_at > since:
            # At one and the same time what ends comes before what begins.
            steps += [(max(arrival.arrived_at, since), 1), (ended_at, -1)]
    most = present = 0
    for _, step in sorted(steps):
        present += step
        most = max(most, present)
    return most


def per_second(arrivals: Iterable[Arrival], since: float, seconds: int) -> list[int]:
    """Count the arrivals of each of the first so many seconds."""
    found = Counter(math.floor(arrival.arrived_at - since) for arrival in arrivals)
    return [found[second] for second in range(seconds)]


def busiest_second(arrivals: Iterable[Arrival]) -> int:
    """Return the most arrivals within any one second, wherever it begins."""
    times = sorted(arrival.arrived_at for arrival in arrivals)
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] >= 1:
            first += 1
        most = max(most, last - first + 1)
    return most


@dataclass(frozen=True, slots=True)
class Order:
    """What became of the order of some ordered webhooks. Events are told by ``(path, number)``."""

    #: Accepted, and never answered with success.
    lost: list[tuple[str, int]]
    #: Whose first success came before that of an event accepted earlier.
    misplaced: list[tuple[str, int]]
    #: Attempts that came after the first attempt of an event accepted later.
    interleaved: list[tuple[str, int]]
    #: Attempts that began while another one of their webhook was in flight.
    overlapping: list[tuple[str, int]]
    #: Attempts after the first success: a worker died before it could say so.
    repeats: int


def judge_order(accepted: Mapping[str, Sequence[int]], arrivals: Iterable[Arrival], kills: Sequence[float]) -> Order:
    """Hold what came to ordered webhooks against the order of acceptance.

    An attempt may begin while another one of its delivery is in flight if a worker was killed since that began: the
    receiver has not noticed yet.

    Args:
        accepted: of each path the numbers of its events, in the order of acceptance.
        arrivals: in any order.
        kills: when workers were killed.
    """
    by_path: dict[str, list[Arrival]] = defaultdict(list)
    for arrival in sorted(arrivals, key=lambda arrival: arrival.arrived_at):
        by_path[arrival.path].append(arrival)
    order = Order([], [], [], [], 0)
    repeats = 0
    for path, numbers in accepted.items():
        place = {number: index for index, number in enumerate(numbers)}
        came = [arrival for arrival in by_path[path] if arrival.number in place]
        done: dict[int, float] = {}
        furthest = furthest_done = -1
        before: Arrival | None = None
        for arrival in came:
            key, index = (path, arrival.number), place[arrival.number]
            if index < furthest:
                order.interleaved.append(key)
            furthest = max(furthest, index)
            if before is not None and _overlaps(before, arrival, kills):
                order.overlapping.append(key)
            # Of several the one that ends last is what the next may run into.
            if before is None or _end(arrival) >= _end(before):
                before = arrival
            if arrival.number in done:
                repeats += 1
            elif arrival.is_ok:
                done[arrival.number] = arrival.arrived_at
                if index < furthest_done:
                    order.misplaced.append(key)
                furthest_done = max(furthest_done, index)
        order.lost.extend((path, number) for number in numbers if number not in done)
    return Order(order.lost, order.misplaced, order.interleaved, order.overlapping, repeats)


def _end(arrival: Arrival) -> float:
    return math.inf if arrival.ended_at is None else arrival.ended_at


def _overlaps(before: Arrival, after: Arrival, kills: Sequence[float]) -> bool:
    if _end(before) <= after.arrived_at:
        return False
    is_repeat = before.number == after.number
    return not (is_repeat and any(before.arrived_at <= killed_at <= after.arrived_at for killed_at in kills))
