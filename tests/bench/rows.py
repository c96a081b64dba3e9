"""All rows, and the order of a run."""

from redis.exceptions import RedisError

from tests.bench import queues, rates, scaling
from tests.bench.environment import Environment
from tests.bench.measures import Figure, RowFailed
from tests.bench.measuring import Bench, Progress, Results
from tests.bench.network import NoNetwork
from tests.bench.plan import Plan
from webhooks.errors import CannotStart, StoreUnavailable

#: By name, in the order in which they are measured and printed.
ROWS = {**rates.ROWS, **queues.ROWS, **scaling.ROWS}
#: Every figure by its key.
FIGURES = {key: definition for known in ROWS.values() for key, definition in known.figures.items()}


def rows_of(only: tuple[str, ...]) -> tuple[str, ...]:
    """Return the rows of a run in their order: those asked for, or all but the extra ones.

    Latency is measured at a share of the rate of (a), so (a) comes with it.
    """
    wanted = set(only) or {name for name, known in ROWS.items() if not known.extra}
    if "latency" in wanted:
        wanted.add("a")
    return tuple(name for name in ROWS if name in wanted)


def measure(environment: Environment, plan: Plan, progress: Progress) -> Results:
    """Measure all rows of a plan.

    Rows that are compared take turns in each round, so that other load on the machine meets all of them.
    """
    bench = Bench(plan, environment, progress, Results())
    for _ in bench.rounds():
        for name in plan.rows:
            if ROWS[name].in_rounds:
                _try(bench, name)
    for name in plan.rows:
        if not ROWS[name].in_rounds:
            _try(bench, name)
    return bench.results


def _try(bench: Bench, name: str) -> None:
    """Measure a row; if that fails, keep the reason in place of its numbers."""
    results = bench.results
    if name in results.failures or name in results.absences:
        return
    try:
        ROWS[name].measure(bench)
    except NoNetwork as reason:
        results.absences[name] = str(reason)
        bench.step(f"{name} is not measured: {reason}", in_rounds=False)
    except (RowFailed, CannotStart, StoreUnavailable, RedisError) as error:
        results.failures[name] = str(error)
        bench.step(f"{name} failed: {error}", in_rounds=False)
    bench.environment.servers.reset()


def figures_of(results: Results, rows: tuple[str, ...]) -> list[Figure]:
    """Return the figures of these rows; of a row that failed or cannot be measured the reason stands in their place."""
    found = []
    for name in rows:
        error, absent = results.failures.get(name), results.absences.get(name)
        for number, (key, definition) in enumerate(ROWS[name].figures.items()):
            samples = tuple(results.samples.get(key, ()))
            if samples or error or (absent and number == 0):
                note = results.notes.get(key, "")
                found.append(Figure(key, definition.text, definition.unit, samples, note, error, absent))
    return found
