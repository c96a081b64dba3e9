"""What a run of the benchmark found, as one value: for JSON, for pages, and as rows of text.

Pure but for `describe_machine`. Never prints: `cli` does.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from tests.bench import processes
from tests.bench.findings import FIGURES, Run
from tests.bench.measures import BARS, NOISE, Figure, Verdict, judge
from tests.bench.plan import EVENT_BYTES, ROWS, SCALE_WORKERS, SIZES, Plan
from webhooks.version import __version__

_PACKAGES = ("celery", "kombu", "redis", "pymongo", "requests")
#: From so many on a number is shown without decimals.
_ROUND_FROM = 100
#: Below this a number of a grid has two decimals, so that small ratios can be told apart.
_DECIMALS_TO = 10


@dataclass(frozen=True, slots=True)
class Report:
    """Everything about a run."""

    #: Where it ran: ``cores``, ``cpu``, ``memory_mb``, ``system``, ``python``, versions of packages and servers.
    machine: Mapping[str, Any]
    plan: Plan
    #: The workers' settings that are not the product's defaults.
    settings: Mapping[str, str]
    figures: Sequence[Figure]
    verdicts: Sequence[Verdict]
    runs: Sequence[Run]
    #: Seconds that all of it took.
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
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
                    "ratio": verdict.ratio,
                    "met": verdict.is_met,
                }
                for verdict in self.verdicts
            ],
            "runs": [{**asdict(run), "cpu_s": dict(run.cpu_s)} for run in self.runs],
            "noise": noise_of(self.runs),
            "seconds": self.seconds,
        }


def judge_all(figures: Sequence[Figure]) -> list[Verdict]:
    """Hold every bar against the figures of a run."""
    by_key = {figure.key: figure for figure in figures}
    return [judge(bar, by_key) for bar in BARS]


def describe_machine(servers: Mapping[str, str]) -> dict[str, Any]:
    """Describe where a run takes place; ``servers`` as `Stage.versions` returns them."""
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


# ── As text ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def head_of(machine: Mapping[str, Any], plan: Plan, settings: Mapping[str, str]) -> list[list[str]]:
    """Return what is said before a run: what it runs on and with, in two columns."""
    sizes = plan.sizes
    is_busy = machine["load_before"] > 1
    given = [name for name, url in (("broker", plan.broker_url), ("MongoDB", plan.mongodb_url)) if url is not None]
    return [
        ["machine", f"{machine['cores']} cores, {machine['memory_mb']:,} MB, {machine['cpu']}, {machine['system']}"],
        ["python", f"{machine['python']}, " + ", ".join(f"{package} {machine[package]}" for package in _PACKAGES)],
        ["servers", f"{machine['broker']}, mongod {machine['mongod']}{', given: ' if given else ''}{', '.join(given)}"],
        ["receiver", _receivers(machine)],
        ["workers", f"{plan.workers}, the product's settings but for {_settings(settings)}"],
        [
            "sizes",
            f"{sizes.rounds} × {sizes.events:,} events, plain {sizes.plain_events:,}; "
            f"queues of {sizes.short_queue:,} and {sizes.long_queue:,}",
        ],
        *([["note", f"load average {machine['load_before']:.1f} before it began"]] if is_busy else []),
    ]


def _receivers(machine: Mapping[str, Any]) -> str:
    nginx, _, echo = str(machine["nginx"]).partition(" ")
    if nginx == "none":
        return "no nginx here: one of ours, in Python"
    if echo == "without echo":
        return f"nginx {nginx}; where answers come late (it lacks the echo module) or are timed, one of ours, in Python"
    return f"nginx {nginx}; where arrivals are timed, one of ours, in Python"


def _settings(settings: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items()) + ", servers and key"


def rows_of(figures: Sequence[Figure]) -> list[list[str]]:
    """Return the figures as rows: what, median, unit, lowest to highest, receiver, note.

    Those of a grid are left to `grids_of`, but for the reason why there is none.
    """
    rows = [["WHAT", "MEDIAN", "", "RANGE", "RECEIVER", "NOTE"]]
    told = set()
    for figure in figures:
        value = figure.value
        grid = _grid_of(figure)
        if grid is not None:
            if value is not None or grid in told:
                continue
            told.add(grid)
        if figure.absent is not None:
            rows.append([ROWS[FIGURES[figure.key].row], "–", "", "", "", figure.absent])
            continue
        rows.append(
            [
                figure.text,
                "error" if value is None else show(value),
                "" if value is None else figure.unit,
                "" if value is None or len(figure.samples) < 2 else _range(figure.samples),
                figure.receiver,
                figure.error or figure.note,
            ]
        )
    return rows


def grids_of(figures: Sequence[Figure]) -> list[list[list[str]]]:
    """Return (scale) and (sizes) as tables of rows, of those that were measured; numbers but in the first column."""
    values = {figure.key: figure.value for figure in figures}
    grids = [
        [
            ["WORKERS", "DELIVERIES/S", "× ONE WORKER", "% OF WHAT RECEIVERS ALLOW", "CORES USED"],
            *(
                [
                    str(count),
                    *(_cell(values.get(f"scale_{count}{key}"), 1) for key in ("", "_ratio", "_share", "_cores")),
                ]
                for count in SCALE_WORKERS
            ),
        ],
        [
            ["PROCESSES × CONCURRENCY", "INSTANT /S", "100 MS /S", "CPU MS PER DELIVERY", "MB PER PROCESS"],
            *(
                [
                    size.text,
                    _cell(values.get(f"{size.key}_instant"), 1),
                    _cell(values.get(f"{size.key}_slow"), 1),
                    _cell(values.get(f"{size.key}_cpu"), 1e-3),
                    _cell(values.get(f"{size.key}_memory"), 1),
                ]
                for size in SIZES
            ),
        ],
    ]
    return [grid for grid in grids if any(cell != "–" for row in grid[1:] for cell in row[1:])]


def _grid_of(figure: Figure) -> str | None:
    definition = FIGURES.get(figure.key)
    return definition.row if definition and definition.row in ("scale", "sizes") else None


def _cell(value: float | None, factor: float) -> str:
    if value is None:
        return "–"
    return f"{value * factor:.2f}" if value * factor < _DECIMALS_TO else show(value * factor)


def verdict_rows_of(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """Return the bars as rows: what, ratio, bar, whether it is met."""
    rows = [["BAR", "RATIO", "WANTED", "MET"]]
    for verdict in verdicts:
        ratio = "–" if verdict.ratio is None else f"{verdict.ratio:.2f}"
        met = {True: "met", False: "NOT MET", None: "not measured"}[verdict.is_met]
        rows.append([verdict.bar.text, ratio, f"{verdict.bar.sense} {verdict.bar.limit:g}", met])
    return rows


def noise_of(runs: Sequence[Run]) -> str | None:
    """Say how much else the machine did meanwhile; None where that was little."""
    noisy = [run.others for run in runs if run.others > NOISE]
    if not noisy:
        return None
    return (
        f"Other programs used up to {max(noisy):.0%} of a core in {len(noisy)} of {len(runs)} runs: "
        "measure again on a machine that does nothing else."
    )


def show(value: float) -> str:
    """Write a number with as many digits as mean something."""
    return f"{value:,.0f}" if value >= _ROUND_FROM else f"{value:.1f}"


def _range(samples: Sequence[float]) -> str:
    return f"{show(min(samples))}–{show(max(samples))}"
