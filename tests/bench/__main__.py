"""``python -m tests.bench``: the command."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from tests.bench.environment import open_environment
from tests.bench.page import render
from tests.bench.plan import Plan, sizes_of
from tests.bench.processes import cores
from tests.bench.report import Report, describe_machine, grids_of, head_of, noise_of, verdict_rows_of
from tests.bench.report import rows_of as figure_rows_of
from tests.bench.rows import ROWS, figures_of, measure, rows_of
from tests.bench.stored import InvalidRun, StoredRun, read_run, read_run_file
from webhooks.cli import OneLineCommand
from webhooks.cli.output import Cell, Table, print_json
from webhooks.models.wire import make_safe

_STYLES = {"met": "green", "NOT MET": "bold red", "error": "bold red", "not measured": "dim"}


class _Screen:
    """Shows progress on standard error; standard output is for results."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def step(self, text: str) -> None:
        self.end()
        click.echo(f"{self.seconds:4.0f} s  {make_safe(text)}", err=True)

    def now(self, text: str) -> None:
        """Write over the last line, on a terminal."""
        if self._is_terminal:
            click.echo(f"\r\x1b[K{self.seconds:4.0f} s    {text}", err=True, nl=False)

    def end(self) -> None:
        if self._is_terminal:
            click.echo("\r\x1b[K", err=True, nl=False)


def _split(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(name for value in values for name in value.split(",") if name)
    for name in names:
        if name not in ROWS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(ROWS)}")
    return names


@click.command(cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--workers", type=click.IntRange(1, 256), help="Worker processes; default: one per core.")
@click.option("--concurrency", type=click.IntRange(1, 10_000), help="WEBHOOKS_CONCURRENCY of each; default: its own.")
@click.option("--events", type=click.IntRange(100, 10_000_000), help="Deliveries of each run of (a), (b) and (c).")
@click.option(
    "--only",
    multiple=True,
    callback=_split,
    metavar="ROW",
    help=f"Only these rows, with commas between: {'; '.join(f'{name}: {row.text}' for name, row in ROWS.items())}.",
)
@click.option("--quick", is_flag=True, help="Everything smaller: a few minutes, and less to be relied on.")
@click.option("--queued", type=click.IntRange(100, 100_000_000), help="Events of the long queue.")
@click.option("--broker-url", help="A Redis that is there already; the database in it must be empty and is wiped.")
@click.option("--mongodb-url", help="A MongoDB that is there already; the database in it must be new and is dropped.")
@click.option(
    "--json",
    "json_path",
    is_flag=False,
    flag_value="-",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="[FILE]",
    help="Write JSON, with every sample, into FILE; without one print it instead of the tables.",
)
@click.option(
    "--html",
    "html_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page that computes what 10,000 and 1,000,000 deliveries per second take; needs rows a and waiting.",
)
@click.option(
    "--from",
    "from_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Measure nothing: make the page from the JSON of an earlier run. Only with --html.",
)
def bench(
    workers: int | None,
    concurrency: int | None,
    events: int | None,
    only: tuple[str, ...],
    quick: bool,
    queued: int | None,
    broker_url: str | None,
    mongodb_url: str | None,
    json_path: Path | None,
    html_path: Path | None,
    from_path: Path | None,
) -> None:
    """Measure how fast it is here, beside a bare requests loop and a plain Celery worker.

    Starts a Valkey, a MongoDB, workers and receivers of its own on free loopback ports, and leaves nothing behind.
    Workers have the product's defaults; WEBHOOKS_… variables of the environment have no effect. Nothing else should run
    meanwhile.
    """
    if from_path is not None:
        if html_path is None:
            raise click.UsageError("--from measures nothing: say with --html where to write the page")
        _write(html_path, _page_of(lambda: read_run_file(from_path)))
        return
    rows = rows_of(only)
    if html_path is not None and not {"a", "waiting"} <= set(rows):
        raise click.UsageError("--html needs the rows a and waiting: add them to --only")
    plan = Plan(
        rows,
        sizes_of(is_quick=quick, events=events, queued=queued),
        cores() if workers is None else workers,
        concurrency,
        broker_url,
        mongodb_url,
    )
    report = _run(plan, has_head=json_path != Path("-"))
    text = json.dumps(report.to_dict(), ensure_ascii=False)
    if json_path == Path("-"):
        print_json(text)
    else:
        if json_path is not None:
            _write(json_path, text + "\n")
        _print(report)
    if html_path is not None:
        _write(html_path, _page_of(lambda: read_run(json.loads(text))))
    if any(figure.error for figure in report.figures):
        raise click.exceptions.Exit(1)


def _run(plan: Plan, *, has_head: bool) -> Report:
    """Measure what a plan says, and leave no process and no file behind."""
    screen = _Screen()
    try:
        with open_environment(plan) as environment:
            machine, settings = describe_machine(environment.versions()), environment.settings
            if has_head:
                Table().print(head_of(machine, plan, settings))
            results = measure(environment, plan, screen)
    finally:
        screen.end()
    return Report(machine, plan, settings, figures_of(results, plan.rows), results.runs, screen.seconds)


def _page_of(read: Callable[[], StoredRun]) -> str:
    try:
        return render(read())
    except InvalidRun as error:
        raise click.UsageError(str(error)) from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from None


def _print(report: Report) -> None:
    figures = figure_rows_of(report.figures)
    tables = [(figures, (1, 3))] if figures[1:] else []
    tables += [(grid, tuple(range(1, len(grid[0])))) for grid in grids_of(report.figures)]
    tables.append((verdict_rows_of(report.verdicts()), (1, 2)))
    for rows, right in tables:
        click.echo()
        Table(right=right).print([[Cell(cell, _STYLES.get(cell, "")) for cell in row] for row in rows])
    noise = noise_of(report.runs)
    click.echo(f"\nIt took {report.seconds:.0f} s." + (f" {noise}" if noise else ""))


if __name__ == "__main__":
    bench.main(prog_name="python -m tests.bench")
