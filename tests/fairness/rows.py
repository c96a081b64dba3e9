"""The table: one row per measurement. No I/O."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_HEAD = ("scenario", "measured", "without", "with", "ratio", "bar", "verdict")


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    scenario: str
    #: What was measured, with its unit.
    what: str
    #: The figure with the trouble, or where there is none to compare with.
    found: float | str
    #: The figure of the same run without the trouble; None where there is no such run.
    without: float | None = None
    #: ``found / without``, where the bar is for that.
    ratio: float | None = None
    #: The bar, in words; empty: the row is there to be known.
    bar: str = ""
    is_good: bool = True
    #: Whether it may be so on a machine that does other things meanwhile.
    is_tolerable: bool = True

    @property
    def verdict(self) -> str:
        """What the table says."""
        return ("good" if self.is_good else "MISSED") if self.bar else "–"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON: figures that are not finite as text."""
        fields = {name: show(value) if _is_odd(value) else value for name, value in asdict(self).items()}
        return {**fields, "verdict": self.verdict}


def at_least(scenario: str, what: str, found: float, bar: float, *, noisy: float, without: float | None = None) -> Row:
    """Judge a figure that must not be lower than the bar, or its ratio to the one without the trouble.

    Args:
        scenario: its name.
        what: was measured.
        found: the figure.
        bar: for the ratio where `without` is given.
        noisy: the bar on a machine that does other things meanwhile.
        without: the figure without the trouble.
    """
    judged = found if without is None else _ratio(found, without)
    ratio = None if without is None else judged
    return Row(scenario, what, found, without, ratio, f"≥ {show(bar)}", judged >= bar, judged >= noisy)


def at_most(scenario: str, what: str, found: float, bar: float, *, noisy: float, without: float | None = None) -> Row:
    """Judge a figure that must not be higher than the bar, or its ratio: as `at_least`."""
    judged = found if without is None else _ratio(found, without)
    ratio = None if without is None else judged
    return Row(scenario, what, found, without, ratio, f"≤ {show(bar)}", judged <= bar, judged <= noisy)


def none_of(scenario: str, what: str, found: Sequence[object]) -> Row:
    """Judge a list that must be empty; noise is no excuse."""
    return Row(scenario, what, len(found), None, None, "0", not found, not found)


def known(scenario: str, what: str, found: float | str, without: float | None = None) -> Row:
    """Make a row that is there to be known."""
    return Row(scenario, what, found, without)


def must(scenario: str, what: str, found: float | str, is_so: bool) -> Row:
    """Judge what must be so; noise is no excuse."""
    return Row(scenario, what, found, None, None, "must be", is_so, is_so)


def _ratio(found: float, without: float) -> float:
    # Nothing to compare with is no pass: NaN is neither above nor below any bar.
    return found / without if without and math.isfinite(without) else math.nan


def _is_odd(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def show(value: float | str | None) -> str:
    """Return a figure as the table has it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "?"
    if math.isinf(value):
        return "never"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def to_markdown(rows: Iterable[Row]) -> str:
    """Return the table, its columns aligned."""
    cells = [
        (row.scenario, row.what, show(row.without), show(row.found), show(row.ratio), row.bar, row.verdict)
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [_HEAD, *cells]) for column in range(len(_HEAD))]
    is_right = (False, False, True, True, True, False, False)

    def line(values: Iterable[str]) -> str:
        padded = [
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, is_right, strict=True)
        ]
        return f"| {' | '.join(padded)} |".rstrip()

    rule = [f"{'-' * (width - 1)}:" if right else "-" * width for width, right in zip(widths, is_right, strict=True)]
    return "\n".join([line(_HEAD), line(rule), *map(line, cells)])
