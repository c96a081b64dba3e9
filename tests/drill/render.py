"""Draw panels of the dashboard from what a drill recorded. Needs matplotlib, which the project does not install.

python -m tests.drill.render /tmp/drill/redis picture.png "Attempts by outcome" "Servers and workers"
"""

import argparse
import json
import re
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

_COLUMNS = 3
_FAULT, _REPAIR = "tab:red", "tab:green"


def _name(legend: str, labels: dict[str, str]) -> str:
    """Fill a legend as Grafana does."""
    return re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), legend).strip()


def _draw(axes: Any, panel: dict[str, Any], marks: dict[str, Any]) -> None:
    for line in panel["lines"]:
        points = [(datetime.fromtimestamp(at, UTC), float(value)) for at, value in line["values"]]
        # Lines that are 0 all the time are drawn without a name.
        name = _name(line["legend"], line["metric"]) if any(value > 0 for _, value in points) else "_"
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
    axes.axvline(datetime.fromtimestamp(marks["broken_at"], UTC), color=_FAULT, linestyle=":")
    axes.axvline(datetime.fromtimestamp(marks["repaired_at"], UTC), color=_REPAIR, linestyle=":")
    axes.set_title(f"{panel['title']} ({panel['unit']})", fontsize=9, loc="left")
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_formatter(import_module("matplotlib.dates").DateFormatter("%H:%M"))
    axes.grid(alpha=0.3)
    if panel["lines"]:
        axes.legend(fontsize=6, framealpha=0.5)


def main() -> None:
    """Draw the panels that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.drill.render")
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("titles", nargs="+")
    given = parser.parse_args()
    panels = {panel["title"]: panel for panel in json.loads((given.folder / "panels.json").read_text())}
    marks = json.loads((given.folder / "marks.json").read_text())
    rows = -(-len(given.titles) // _COLUMNS)
    pyplot: Any = import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(rows, _COLUMNS, figsize=(4.2 * _COLUMNS, 2.4 * rows), squeeze=False)
    for place, title in zip(axes.flat, given.titles, strict=False):
        _draw(place, panels[title], marks)
    for place in list(axes.flat)[len(given.titles) :]:
        place.axis("off")
    figure.tight_layout()
    figure.savefig(given.picture, dpi=80)


if __name__ == "__main__":
    main()
