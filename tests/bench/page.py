"""The capacity page of a run: one HTML file that loads nothing else.

``capacity.html`` is its frame. Every text of a run may come from a stranger.
"""

import json
from html import escape
from importlib.resources import files
from string import Template

from tests.bench.capacity import (
    ASSUMPTIONS,
    COSTS,
    DEFAULTS,
    LINES,
    MAIN,
    RATES,
    Assumption,
    Line,
    need,
    script,
    show,
    sources_of,
)
from tests.bench.rows import FIGURES
from tests.bench.scaling import SCALE_WORKERS
from tests.bench.stored import StoredFigure, StoredRun

_ASSUMED = {assumption.key: assumption.text.lower() for assumption in ASSUMPTIONS}


def render(run: StoredRun) -> str:
    """Make the page of a run.

    Raises:
        InvalidRun: the run lacks a cost.
    """
    costs = run.costs()
    needs = [need(costs, DEFAULTS, rate) for rate in RATES]
    scale = _scale(run)
    frame = Template((files("tests.bench") / "capacity.html").read_text(encoding="utf-8"))
    return frame.substitute(
        machine=_machine(run),
        noise=f'<p class="warning">{escape(run.noise)}</p>' if run.noise else "",
        rates="".join(f'<th scope="col" class="number">{show(rate)}</th>' for rate in RATES),
        needs="\n".join(
            f'<tbody><tr class="group"><th colspan="4" scope="rowgroup">{heading}</th></tr>\n'
            + "\n".join(_line(line, needs) for line in lines)
            + "</tbody>"
            for heading, lines in LINES.items()
        ),
        assumptions="\n".join(_field(assumption) for assumption in ASSUMPTIONS),
        measured=_measured(run),
        costs="\n".join(_cost(key, run.figures[key]) for key in COSTS),
        scale=scale,
        scale_link='<a href="#scale">the run’s own measurement</a>.'
        if scale
        else "<code>python -m tests.bench --only scale</code>, which this run did not measure.",
        need=script(),
        # No text may end the script.
        data=json.dumps({"costs": costs, "rates": RATES}).replace("<", "\\u003c"),
    )


def _line(line: Line, needs: list[dict[str, float]]) -> str:
    said = [line.rule]
    for kind, place, texts in (
        ("measured", "f", {key: FIGURES[key].text for key in COSTS}),
        ("assumed", "a", _ASSUMED),
    ):
        links = [f'<a href="#{place}-{key}">{escape(texts[key])}</a>' for key in sources_of(line.key) if key in texts]
        if links:
            said.append(f"{kind}: {', '.join(links)}")
    cells = [
        f'<td class="number" data-column="{column}" data-key="{line.key}">{show(found[line.key])}</td>'
        for column, found in enumerate(needs)
    ]
    cells.append(f'<td class="number yours" data-column="{len(needs)}" data-key="{line.key}"></td>')
    unit = f' <span class="unit">{line.unit}</span>' if line.unit else ""
    head = f'<th scope="row"><span>{line.text}</span>{unit}<small>{". ".join(said)}</small></th>'
    is_main = ' class="main"' if line.key in MAIN else ""
    return f"<tr{is_main}>{head}{''.join(cells)}</tr>"


def _field(known: Assumption) -> str:
    unit = f" <span class=unit>{known.unit}</span>" if known.unit else ""
    return (
        f'<div class="field" id="a-{known.key}"><label for="i-{known.key}">{known.text}{unit}</label>'
        f'<input id="i-{known.key}" name="{known.key}" type="number" min="{known.lowest:g}" '
        f'max="{known.highest:.15g}" step="any" value="{known.default:g}" data-text="{known.text}" required disabled>'
        f"<small>{known.reason}</small></div>"
    )


def _cost(key: str, figure: StoredFigure) -> str:
    samples = figure.samples
    spread = f"{show(min(samples))}–{show(max(samples))}" if len(samples) > 1 else ""
    return (
        f'<tr id="f-{key}"><th scope="row">{FIGURES[key].text}</th>'
        f'<td class="number">{show(figure.value or 0)}</td><td class="unit">{figure.unit}</td>'
        f'<td class="number">{spread}</td><td><small>{escape(figure.note)}</small></td></tr>'
    )


def _machine(run: StoredRun) -> str:
    machine = run.machine
    return escape(
        f"{machine.cores} cores, {machine.memory_mb:,} MB, {machine.cpu}, {machine.system}; Python {machine.python}, "
        f"webhooks {machine.webhooks}, {machine.broker}, MongoDB {machine.mongod}."
    )


def _measured(run: StoredRun) -> str:
    sizes = run.plan.sizes
    return (
        f"Row (a): {sizes.rounds} × {sizes.events:,} deliveries of events of {run.plan.event_bytes:,} bytes, "
        f"{run.plan.workers} worker {'process' if run.plan.workers == 1 else 'processes'}, receivers that answer at "
        "once, all on the one machine. Row waiting: deliveries whose first attempt failed. Medians where there are "
        "several samples."
    )


def _scale(run: StoredRun) -> str:
    counts = [count for count in SCALE_WORKERS if run.value(f"scale_{count}") is not None]
    if not counts:
        return ""
    rows = "\n".join(
        f'<tr><th scope="row">{count}</th>'
        + "".join(
            f'<td class="number">{"–" if value is None else show(value)}</td>'
            for value in (run.value(f"scale_{count}{key}") for key in ("", "_ratio", "_cores"))
        )
        + "</tr>"
        for count in counts
    )
    note = escape(run.figures[f"scale_{counts[0]}"].note)
    return f"""<h2 id="scale">More workers, more throughput</h2>
<p>Workers in network namespaces of their own, at receivers that take 100 ms, with so few attempts at one time that
waiting bounds them and not the one machine’s cores. The first: {note}.</p>
<div class="wide"><table>
<thead><tr><th scope="col">Workers</th><th scope="col" class="number">Deliveries/s</th>
<th scope="col" class="number">× one worker</th><th scope="col" class="number">Cores used in all</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>"""
