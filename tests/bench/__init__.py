"""``python -m tests.bench``: how fast the product is here, beside what one would otherwise write, in one run.

Owns the order of a run. Its parts, from the bottom:

- `plan`: which rows, and how much of each; `measures`: the arithmetic, and the bars. Pure.
- `events`: webhooks and events. `nginx`, `receiver`: who takes the requests. `producer`: who hands events in.
- `yardsticks`: the bare `requests` loop and the plain Celery worker. Knows nothing of the product.
- `processes`: CPU time and memory out of /proc. `network`: namespaces, where programs stand on hosts of their own.
- `crew`: workers and producers. `servers`, `receivers`: the others. `stage` starts all, and leaves nothing behind.
- `findings`: every figure there can be. `measuring`, `rows`, `sizing`: what is done for each.
- `report`: what was found, as a value and as text.

A rate is that of the logs that appear in MongoDB: events are queued first, then the workers are started, and the time
is taken from the tenth part of the logs to the ninth. The yardsticks get the same events, servers and receivers. Called
by `cli`.
"""

import time

from tests.bench.findings import Progress
from tests.bench.plan import Plan
from tests.bench.report import Report, describe_machine, head_of, judge_all
from tests.bench.rows import measure
from tests.bench.stage import open_stage


def run_bench(plan: Plan, progress: Progress) -> Report:
    """Measure what a plan says, and leave no process and no file behind.

    Args:
        plan: what is measured.
        progress: is told of it all the while.

    Raises:
        CannotStart: a server does not come up, or one that is given is not empty.
        ServerMissing: a server is not installed.
    """
    begun = time.monotonic()
    with open_stage(plan) as stage:
        machine = describe_machine(stage.versions())
        progress.begin(head_of(machine, plan, stage.settings))
        found = measure(stage, plan, progress)
        settings = dict(stage.settings)
    figures = found.figures(plan.rows)
    return Report(machine, plan, settings, figures, judge_all(figures), found.runs, time.monotonic() - begun)
