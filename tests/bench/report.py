"""What a run found: as JSON, and as tables."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from tests.bench import processes
from tests.bench.bars import BARS, BEFORE, Verdict, judge
from tests.bench.measures import NOISE, Figure
from tests.bench.measuring import Run
from tests.bench.plan import EVENT_BYTES, Plan
from tests.bench.rows import ROWS
from tests.bench.scaling import SCALE_WORKERS, SIZES
from webhooks.version import __version__

_PACKAGES = ("celery", "kombu", "redis", "pymongo", "requests")
#: From here on a number is shown without decimals.
_ROUND_FROM = 100
#: Below this a number of a grid has two decimals.
_DECIMALS_TO = 10
#: Rows whose figures have tables of their own.
_GRIDS = ("scale", "sizes")


@dataclass(frozen=True, slots=True)
class Report:
    #: From `describe_machine`.
    machine: Mapping[str, Any]
    plan: Plan
    #: The workers' settings that differ from the product's defaults.
    settings: Mapping[str, str]
    figures: Sequence[Figure]
    runs: Sequence[Run]
    #: Seconds that all of it took.
    seconds: float

    def verdicts(self) -> list[Verdict]:
        by_key = {figure.key: figure for figure in self.figures}
        return [judge(bar, by_key) for bar in BARS]

    def to_dict(self) -> dict[str, Any]:
        return {
            "machine": dict(self.machine),
            "plan": {
                "rows": list(self.plan.rows),
                "workers": self.plan.workers,
                "concurrency": self.plan.concurrency,
                "event_bytes": EVENT_BYTES,
                "own_broker": self.plan.broker_url is None,
                "own_mongodb": self.plan.mongodb_url is None,
                "sizes": asdict(self.plan.sizes),
            },
            "settings": dict(self.settings),
            "figures": {figure.key: {**asdict(figure), "value": figure.value} for figure in self.figures},
            "bars": [
                {
                    **asdict(verdict.bar),
                    "sense": {"≥": ">=", "≤": "<="}[verdict.bar.sense],
                    "value": verdict.value,
                    "before": BEFORE.get(verdict.bar.key),
                    "met": verdict.is_met,
                }
                for verdict in self.verdicts()
            ],
            "runs": [{**asdict(run), "cpu_s": dict(run.cpu_s)} for run in self.runs],
            "noise": noise_of(self.runs),
            "seconds": self.seconds,
        }


def describe_machine(servers: Mapping[str, str]) -> dict[str, Any]:
    """Describe where a run takes place; ``servers`` are from `Environment.versions`."""
    return {
        "cores": processes.cores(),
        "cpu": processes.cpu_model(),
        "memory_mb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "webhooks": __version__,
        **{package: version(package) for package in _PACKAGES},
        **servers,
    }


def head_of(machine: Mapping[str, Any], plan: Plan, settings: Mapping[str, str]) -> list[list[str]]:
    """Return what is printed before a run: what it runs on and with, in two columns."""
    sizes = plan.sizes
    given = [name for name, url in (("broker", plan.broker_url), ("MongoDB", plan.mongodb_url)) if url is not None]
    changed = "".join(f"{name}={value}, " for name, value in settings.items())
    head = [
        ["machine", f"{machine['cores']} cores, {machine['memory_mb']:,} MB, {machine['cpu']}, {machine['system']}"],
        ["python", f"{machine['python']}, " + ", ".join(f"{package} {machine[package]}" for package in _PACKAGES)],
        ["servers", f"{machine['broker']}, mongod {machine['mongod']}{', given: ' if given else ''}{', '.join(given)}"],
        ["receiver", _receivers(machine)],
        ["workers", f"{plan.workers}, the product's settings but for {changed}servers and key"],
        [
            "sizes",
            f"{sizes.rounds} × {sizes.events:,} events, plain {sizes.plain_events:,}; "
            f"queues of {sizes.short_queue:,} and {sizes.long_queue:,}",
        ],
    ]
    if machine["load_before"] > 1:
        head.append(["note", f"load average {machine['load_before']:.1f} before it began"])
    return head


def _receivers(machine: Mapping[str, Any]) -> str:
    nginx, _, echo = str(machine["nginx"]).partition(" ")
    if nginx == "none":
        return "no nginx here: one of ours, in Python"
    late = "answers come late (it lacks the echo module) or arrivals" if echo == "without echo" else "arrivals"
    return f"nginx {nginx}; where {late} are timed, one of ours, in Python"


def rows_of(figures: Sequence[Figure]) -> list[list[str]]:
    """Return the figures as rows: what, median, unit, lowest to highest, note.

    Of a row with a table of its own only the reason stands here why there is none.
    """
    rows = [["WHAT", "MEDIAN", "", "RANGE", "NOTE"]]
    grids = {key: name for name in _GRIDS for key in ROWS[name].figures}
    told = set()
    for figure in figures:
        value, name = figure.value, grids.get(figure.key)
        if name is not None:
            if value is not None or name in told:
                continue
            told.add(name)
        if value is not None:
            samples = figure.samples
            spread = "" if len(samples) < 2 else f"{show(min(samples))}–{show(max(samples))}"
            rows.append([figure.text, show(value), figure.unit, spread, figure.note])
        elif figure.absent is not None:
            rows.append([figure.text, "–", "", "", f"not measured: {figure.absent}"])
        else:
            rows.append([figure.text, "error", "", "", figure.error or ""])
    return rows


def grids_of(figures: Sequence[Figure]) -> list[list[list[str]]]:
    """Return (scale) and (sizes) as tables, if they were measured; only the first column is text."""
    values = {figure.key: figure.value for figure in figures}

    def cells(*keys: str) -> list[str]:
        # CPU time as ms.
        found = [(values.get(key), 1e-3 if key.endswith("_cpu") else 1) for key in keys]
        return ["–" if value is None else _in_grid(value * factor) for value, factor in found]

    scale = [["WORKERS", "DELIVERIES/S", "× ONE WORKER", "% OF WHAT RECEIVERS ALLOW", "CORES USED"]]
    for count in SCALE_WORKERS:
        scale.append([str(count), *cells(*(f"scale_{count}{key}" for key in ("", "_ratio", "_share", "_cores")))])
    sizes = [["PROCESSES × CONCURRENCY", "INSTANT /S", "100 MS /S", "CPU MS PER DELIVERY", "MB PER PROCESS"]]
    for size in SIZES:
        sizes.append([size.text, *cells(*(f"{size.key}_{key}" for key in ("instant", "slow", "cpu", "memory")))])
    return [grid for grid in (scale, sizes) if any(cell != "–" for row in grid[1:] for cell in row[1:])]


def _in_grid(value: float) -> str:
    return f"{value:.2f}" if value < _DECIMALS_TO else show(value)


def verdict_rows_of(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """Return the bars as rows: what, now, before, bar, whether it is met."""
    rows = [["BAR", "NOW", "BEFORE", "WANTED", "MET"]]
    for verdict in verdicts:
        bar, value = verdict.bar, verdict.value
        wanted = "–" if bar.limit is None else f"{bar.sense} {bar.limit:g} {bar.unit}".strip()
        met = {True: "met", False: "NOT MET", None: "not measured" if value is None else "reported"}[verdict.is_met]
        rows.append([bar.text, _ratio(value), _ratio(BEFORE.get(bar.key)), wanted, met])
    return rows


def _ratio(value: float | None) -> str:
    if value is None:
        return "–"
    # Three digits below 1, where bars are close to each other.
    return show(value) if value >= _ROUND_FROM else f"{value:.3f}" if value < 1 else f"{value:.2f}"


def noise_of(runs: Sequence[Run]) -> str | None:
    """Say how much else the machine did meanwhile; None if it was little."""
    noisy = [run.others for run in runs if run.others > NOISE]
    if not noisy:
        return None
    return (
        f"Other programs used up to {max(noisy):.0%} of a core in {len(noisy)} of {len(runs)} runs: "
        "measure again on a machine that does nothing else."
    )


def show(value: float) -> str:
    return f"{value:,.0f}" if value >= _ROUND_FROM else f"{value:.1f}"
