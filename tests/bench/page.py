"""The capacity page: one HTML file that needs nothing besides, made of a run.

Owns how it looks; what it says in numbers is `capacity`'s, what it was measured from `stored`'s. The frame is
``capacity.html``, whose script computes for what a reader types in. All that comes out of a run may be anybody's text.
"""

import json
from dataclasses import asdict
from html import escape
from importlib.resources import files
from string import Template

from tests.bench.capacity import ASSUMPTIONS, DEFAULTS, GROUPS, RATES, RETRY_DELAY_S, Line, need, show
from tests.bench.findings import FIGURES
from tests.bench.plan import SCALE_WORKERS
from tests.bench.stored import COST_FIGURES, StoredFigure, StoredRun

#: What leads a group.
_MAIN = ("hosts", "processes", "concurrency", "redis_shards", "mongodb_shards", "log_per_day", "cells")
_ASSUMED = {assumption.key: assumption.text for assumption in ASSUMPTIONS}


def render(run: StoredRun) -> str:
    """Make the page of a run.

    Raises:
        InvalidRun: the run lacks a cost.
    """
    costs = run.costs()
    needs = [need(costs, DEFAULTS, rate) for rate in RATES]
    data = {"costs": asdict(costs), "rates": RATES, "retry_delay_s": RETRY_DELAY_S}
    scale = _scale(run)
    frame = Template((files("tests.bench") / "capacity.html").read_text(encoding="utf-8"))
    return frame.substitute(
        machine=_machine(run),
        noise=f'<p class="warning">{escape(run.noise)}</p>' if run.noise else "",
        rates="".join(f'<th scope="col" class="number">{show(rate)}</th>' for rate in RATES),
        needs="\n".join(
            f'<tbody><tr class="group"><th colspan="4" scope="rowgroup">{group.text}</th></tr>\n'
            + "\n".join(_line(line, needs) for line in group.lines)
            + "</tbody>"
            for group in GROUPS
        ),
        assumptions="\n".join(
            f'<div class="field" id="a-{known.key}"><label for="i-{known.key}">{known.text}'
            f"{f' <span class=unit>{known.unit}</span>' if known.unit else ''}</label>"
            f'<input id="i-{known.key}" name="{known.key}" type="number" min="{known.lowest:g}" '
            f'max="{known.highest:.15g}" step="any" value="{known.default:g}" data-text="{known.text}" '
            "required disabled>"
            f"<small>{known.reason}</small></div>"
            for known in ASSUMPTIONS
        ),
        measured=_measured(run),
        costs="\n".join(_cost(key, run.figures[key]) for key in COST_FIGURES),
        scale=scale,
        scale_link='<a href="#scale">the run’s own measurement</a>.'
        if scale
        else "<code>python -m tests.bench --only scale</code>, which this run did not measure.",
        # No text that ends the script, whatever stands in it.
        data=json.dumps(data).replace("<", "\\u003c"),
    )


def _line(line: Line, needs: list[dict[str, float]]) -> str:
    sources = [
        *(("measured", f"f-{key}", FIGURES[key].text) for key in line.figures),
        *(("assumed", f"a-{key}", _ASSUMED[key].lower()) for key in line.assumptions),
    ]
    said = [line.rule]
    for kind in ("measured", "assumed"):
        links = [f'<a href="#{place}">{escape(text)}</a>' for known, place, text in sources if known == kind]
        if links:
            said.append(f"{kind}: {', '.join(links)}")
    cells = [
        f'<td class="number" data-column="{column}" data-key="{line.key}">{show(found[line.key])}</td>'
        for column, found in enumerate(needs)
    ]
    cells.append(f'<td class="number yours" data-column="{len(needs)}" data-key="{line.key}"></td>')
    unit = f' <span class="unit">{line.unit}</span>' if line.unit else ""
    is_main = ' class="main"' if line.key in _MAIN else ""
    head = f'<th scope="row"><span>{line.text}</span>{unit}<small>{". ".join(said)}</small></th>'
    return f"<tr{is_main}>{head}{''.join(cells)}</tr>"


def _cost(key: str, figure: StoredFigure) -> str:
    lowest, highest = (show(found(figure.samples)) for found in (min, max)) if len(figure.samples) > 1 else ("", "")
    return (
        f'<tr id="f-{key}"><th scope="row">{FIGURES[key].text}</th>'
        f'<td class="number">{show(figure.value or 0)}</td><td class="unit">{figure.unit}</td>'
        f'<td class="number">{f"{lowest}–{highest}" if lowest else ""}</td>'
        f"<td><small>{escape(figure.note)}</small></td></tr>"
    )


def _machine(run: StoredRun) -> str:
    machine = run.machine
    text = (
        f"{machine.cores} cores, {machine.memory_mb:,} MB, {machine.cpu}, {machine.system}; Python {machine.python}, "
        f"webhooks {machine.webhooks}, {machine.broker}, MongoDB {machine.mongod}."
    )
    return escape(text)


def _measured(run: StoredRun) -> str:
    sizes = run.plan.sizes
    return (
        f"Row (a): {sizes.rounds} × {sizes.events:,} deliveries of events of {run.plan.event_bytes:,} bytes, "
        f"{run.plan.workers} worker {'process' if run.plan.workers == 1 else 'processes'}, receivers that answer at "
        "once, all on the one machine. Row waiting: deliveries whose first attempt failed. Medians where there are "
        "several samples."
    )


def _scale(run: StoredRun) -> str:
    rows = [
        (workers, rate, run.value(f"scale_{workers}_ratio"), run.value(f"scale_{workers}_cores"))
        for workers in SCALE_WORKERS
        if (rate := run.value(f"scale_{workers}")) is not None
    ]
    if not rows:
        return ""
    cells = "\n".join(
        f'<tr><th scope="row">{workers}</th>' + "".join(f'<td class="number">{_or_dash(value)}</td>' for value in rest)
        for workers, *rest in rows
    )
    note = escape(run.figures[f"scale_{rows[0][0]}"].note)
    return f"""<h2 id="scale">More workers, more throughput</h2>
<p>Workers in network namespaces of their own, at receivers that take 100 ms, with so few attempts at one time that
waiting bounds them and not the one machine’s cores. The first: {note}.</p>
<div class="wide"><table>
<thead><tr><th scope="col">Workers</th><th scope="col" class="number">Deliveries/s</th>
<th scope="col" class="number">× one worker</th><th scope="col" class="number">Cores used in all</th></tr></thead>
<tbody>
{cells}
</tbody>
</table></div>"""


def _or_dash(value: float | None) -> str:
    return "–" if value is None else show(value)
