"""The benchmark's arithmetic, plans, events and texts."""

import ast
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from bson import ObjectId
from click.testing import CliRunner

from tests import bench
from tests.bench import events, measures, plan, report
from tests.bench.__main__ import bench as bench_command
from tests.bench.bars import BARS, BEFORE, Bar, judge
from tests.bench.measures import Figure, RowFailed, Sample, percentile, steady
from tests.bench.measuring import Results, Run
from tests.bench.receivers import Nginx
from tests.bench.rows import FIGURES, ROWS, figures_of, rows_of
from webhooks.models import parse_event
from webhooks.rules.encryption import Use, Vault, new_key
from webhooks.store.webhooks import read_stored

FOLDER = Path(bench.__file__).parent


def samples(*points: tuple[float, int], cpu_per_s: float = 0.5, machine_per_s: float = 0.5) -> list[Sample]:
    return [Sample(at, logged, {"workers": cpu_per_s * at, "machine": machine_per_s * at}) for at, logged in points]


def figure(key: str, *values: float, error: str | None = None) -> Figure:
    return Figure(key, key, "/s", values, error=error)


# ── Rates ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_steady_rate_leaves_out_how_a_run_begins_and_ends():
    run = samples((0, 0), (5, 0), (6, 100), (7, 500), (8, 900), (20, 1000))
    part = steady(run, 100, 900)
    assert part.per_s == pytest.approx(400)
    assert part.seconds == pytest.approx(2)


def test_steady_rate_between_two_looks_is_in_proportion():
    part = steady(samples((0, 0), (10, 1000)), 100, 900)
    assert part.per_s == pytest.approx(100)
    assert part.seconds == pytest.approx(8)


def test_steady_rate_gives_cpu_per_delivery_and_what_others_used():
    part = steady(samples((0, 0), (10, 1000), cpu_per_s=0.5, machine_per_s=1.5), 100, 900)
    assert part.cpu_s == pytest.approx({"workers": 0.005})
    assert part.others == pytest.approx(1)


def test_steady_rate_counts_no_part_that_was_not_there_at_both_ends():
    first, last = Sample(0, 0, {"workers": 0.0}), Sample(1, 10, {"workers": 1.0, "machine": 9.0})
    assert steady([first, last], 1, 9).others == 0


@pytest.mark.parametrize(
    "points",
    [
        pytest.param([], id="none"),
        pytest.param([(0, 0)], id="one"),
        pytest.param([(0, 0), (1, 500)], id="stopped"),
        pytest.param([(0, 1000)], id="all-at-once"),
    ],
)
def test_steady_rate_of_too_little_is_refused(points: Sequence[tuple[float, int]]):
    with pytest.raises(RowFailed):
        steady(samples(*points), 100, 900)


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (50.1, 51), (99, 99), (99.1, 100), (100, 100)]
)
def test_percentile_is_the_nearest_rank(percent: float, expected: float):
    assert percentile([*range(100, 0, -1)], percent) == expected


def test_percentile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


# ── Figures and bars ────────────────────────────────────────────────────────────────────────────────────────────────
def test_figure_is_the_median_of_its_samples():
    assert figure("a", 5, 1, 3).value == 3
    assert figure("a", 1, 2).value == 1.5
    assert figure("a").value is None
    assert figure("a", 1, error="lost one").value is None


@pytest.mark.parametrize(
    ("sense", "value", "is_met"),
    [("≥", 12.0, True), ("≥", 11.99, False), ("≤", 12.0, True), ("≤", 12.01, False)],
)
def test_bar_is_met_at_its_limit(sense: str, value: float, is_met: bool):
    bar = Bar("x", "x", ("a",), "bare", 1.2, sense)  # pyright: ignore[reportArgumentType]
    verdict = judge(bar, {"a": figure("a", value), "bare": figure("bare", 10)})
    assert verdict.value == pytest.approx(value / 10)
    assert verdict.is_met is is_met


def test_bar_without_a_figure_to_divide_by_is_of_the_sum_in_its_unit():
    bar = Bar("x", "x", ("a", "b"), None, 0.45, "≤", 1e-3, "ms")
    verdict = judge(bar, {"a": figure("a", 300), "b": figure("b", 151)})
    assert (verdict.value, verdict.is_met) == (pytest.approx(0.451), False)


def test_bar_without_a_limit_is_reported():
    verdict = judge(Bar("x", "x", ("a",), "b", None), {"a": figure("a", 3), "b": figure("b", 2)})
    assert (verdict.value, verdict.is_met) == (1.5, None)


@pytest.mark.parametrize(
    "figures",
    [
        pytest.param([], id="neither"),
        pytest.param([figure("a", 1)], id="one"),
        pytest.param([figure("a", 1), figure("bare", 0)], id="nothing-to-divide-by"),
        pytest.param([figure("a", 1, error="lost"), figure("bare", 1)], id="error"),
    ],
)
def test_bar_of_what_was_not_measured_is_neither_met_nor_missed(figures: list[Figure]):
    verdict = judge(BARS[0], {known.key: known for known in figures})
    assert (verdict.value, verdict.is_met) == (None, None)


def test_bars_are_of_figures_that_are_measured_and_the_run_before_is_of_bars():
    assert {key for bar in BARS for key in (*bar.figures, bar.against) if key is not None} <= FIGURES.keys()
    assert {bar.key for bar in BARS} >= BEFORE.keys()


def test_no_two_rows_have_the_same_figure():
    assert len(FIGURES) == sum(len(row.figures) for row in ROWS.values())


def test_figures_of_a_row_that_failed_or_cannot_be_measured_tell_why():
    results = Results()
    for key in ("a", "b"):
        results.samples[key].append(100.0)
    results.failures["b"] = "1 of 2 logs"
    results.absences["scale"] = "needs root"
    by_key = {known.key: known for known in figures_of(results, ("a", "b", "scale"))}
    assert by_key["a"].value == 100
    assert (by_key["b"].value, by_key["b"].error) == (None, "1 of 2 logs")
    # What was not measured is left out, and the reason of a row that is absent stands once.
    assert {*by_key} == {"a", "b", "scale_1"}
    assert by_key["scale_1"].absent == "needs root"


# ── Plans ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_rows_are_all_unless_some_are_asked_for():
    assert rows_of(()) == tuple(row for row in ROWS if row != "sizes")
    assert rows_of(("b", "bare")) == ("bare", "b")


def test_latency_brings_the_rate_that_it_is_a_share_of():
    assert rows_of(("latency",)) == ("a", "latency")


def test_sizes_that_are_asked_for_hold():
    sizes = plan.sizes_of(is_quick=False, events=1000, queued=5000)
    assert (sizes.events, sizes.plain_events, sizes.short_queue, sizes.long_queue) == (1000, 300, 5000, 5000)


@pytest.mark.parametrize("name", ["only", "events", "queued", "workers", "concurrency"])
def test_command_refuses_what_cannot_be(name: str):
    done = CliRunner().invoke(bench_command, [f"--{name}", "nonsense"])
    assert done.exit_code == 2
    assert "nonsense" in done.output


# ── Events and receivers ────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("size", [plan.EVENT_BYTES, plan.SMALL_EVENT_BYTES])
@pytest.mark.parametrize("kind", range(25))
def test_event_is_one_of_the_contract_and_as_large_as_said(kind: int, size: int):
    event = events.make_event(ObjectId(), kind, size)
    assert abs(len(parse_event(event, 10_000).to_json().encode()) - size) < 20


def test_lines_go_through_the_webhooks_in_turn():
    targets = [events.Target(f"http://127.0.0.1:{port}/") for port in (81, 82)]
    lines = [json.loads(line) for line in events.to_lines(targets, 500)]
    assert len({json.dumps(line["event"]) for line in lines}) == len(lines)
    for number, line in enumerate(lines):
        target = targets[number % 2]
        assert (line["url"], line["event"]["company"]) == (target.url, str(target.company))


def test_webhook_is_signed_and_can_be_read_by_a_worker():
    vault = Vault([new_key()])
    target = events.Target("http://127.0.0.1:8081/")
    webhook = read_stored(target.to_bson(vault))
    assert webhook.company == target.company
    assert vault.open(webhook.secrets[0].sealed, target.id, Use.SIGN).startswith("whsec_")


@pytest.mark.parametrize("echo", [Path("/modules/echo.so"), None])
def test_nginx_listens_at_its_address_alone(echo: Path | None):
    text = Nginx(Path("nginx"), "1.22.1", echo).configuration("198.18.0.1", [8081, 8082])
    listening = [line.split()[1] for line in text.splitlines() if line.strip().startswith("listen ")]
    assert listening == ["198.18.0.1:8081", "198.18.0.1:8082"]
    assert ("echo_sleep 0.1;" in text) is ("load_module" in text) is (echo is not None)


def test_nginx_has_tls_where_it_is_asked_for():
    texts = [Nginx(Path("nginx"), "1.22.1", None).configuration("127.0.0.1", [8443], is_tls=it) for it in (True, False)]
    assert ["listen 127.0.0.1:8443 ssl " in text for text in texts] == [True, False]
    assert ["ssl_certificate_key key.pem;" in text for text in texts] == [True, False]


@pytest.mark.parametrize("name", ["baselines.py", "receiver.py"])
def test_what_the_product_is_held_against_has_nothing_of_it(name: str):
    imported = set()
    for node in ast.walk(ast.parse((FOLDER / name).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert "webhooks" not in imported


# ── Text ────────────────────────────────────────────────────────────────────────────────────────────────────────────
MACHINE = {
    **dict.fromkeys(("webhooks", "celery", "kombu", "redis", "pymongo", "requests"), "1.0"),
    "cores": 2,
    "cpu": "some",
    "memory_mb": 8192,
    "system": "Linux 6",
    "python": "3.11.7",
    "load_before": 0.1,
    "broker": "valkey 9.1",
    "mongod": "6.0.5",
    "nginx": "1.22.1 with echo",
}


def run(others: float = 0.0) -> Run:
    return Run("a", 1, 1000, 100.0, 8.0, others, {"workers": 0.005}, ((0.0, 0), (10.0, 1000)))


def make_report(*figures: Figure) -> report.Report:
    made = plan.Plan(("a", "bare"), plan.QUICK, 2)
    return report.Report(MACHINE, made, {"WEBHOOKS_CONCURRENCY": "9"}, figures, [run()], 60.0)


def test_report_is_json_with_samples_ratios_and_bars():
    told = json.loads(json.dumps(make_report(figure("a", 10, 30, 20), figure("bare", 10)).to_dict(), allow_nan=False))
    assert told["figures"]["a"]["samples"] == [10, 30, 20]
    assert told["figures"]["a"]["value"] == 20
    assert [bar["key"] for bar in told["bars"]] == [bar.key for bar in BARS]
    bar = told["bars"][0]
    assert (bar["value"], bar["before"], bar["met"]) == (2.0, BEFORE["a_bare"], True)
    assert (bar["limit"], bar["sense"]) == (BARS[0].limit, ">=")
    assert told["bars"][1]["met"] is None
    assert told["runs"][0]["logged"] == [[0.0, 0], [10.0, 1000]]
    assert told["settings"] == {"WEBHOOKS_CONCURRENCY": "9"}


def test_report_shows_no_url_of_a_server():
    made = plan.Plan(
        ("a",), plan.QUICK, 2, broker_url="redis://:secret@host/1", mongodb_url="mongodb://u:secret@host/x"
    )
    told = report.Report(MACHINE, made, {}, [], [], 1.0).to_dict()
    assert "secret" not in json.dumps(told) + str(report.head_of(MACHINE, made, {}))
    assert (told["plan"]["own_broker"], told["plan"]["own_mongodb"]) == (False, False)


def test_tables_say_what_failed_and_what_was_not_measured():
    rows = report.rows_of([figure("a", 10, 12), figure("bare", error="it died")])
    assert rows[1][:4] == ["a", "11", "/s", "10–12"]
    assert (rows[2][1], rows[2][-1]) == ("error", "it died")
    verdicts = report.verdict_rows_of(make_report(figure("a", 10)).verdicts())
    before = f"{BEFORE['a_bare']:.2f}"
    assert verdicts[1] == [BARS[0].text, "–", before, f"≥ {BARS[0].limit:g}", "not measured"]


def test_table_of_bars_has_this_run_the_one_before_and_the_limit():
    figures = [figure(key, value) for key, value in (("redis_bytes", 2500.4), ("tls", 30), ("one_host", 40))]
    rows = {row[0]: row[1:] for row in report.verdict_rows_of(make_report(*figures).verdicts())}
    texts = {bar.key: bar.text for bar in BARS}
    assert rows[texts["redis_bytes"]] == ["2,500", f"{BEFORE['redis_bytes']:,}", "≤ 2600 bytes", "met"]
    assert rows[texts["tls"]] == ["0.750", f"{BEFORE['tls']:.3f}", "–", "reported"]


@pytest.mark.parametrize(
    ("nginx", "said"),
    [("none", "no nginx"), ("1.22.1 without echo", "lacks the echo module"), ("1.22.1 with echo", "are timed")],
)
def test_head_says_who_takes_the_requests(nginx: str, said: str):
    head = dict(report.head_of({**MACHINE, "nginx": nginx}, plan.Plan(("a",), plan.QUICK, 2), {}))
    assert said in head["receiver"]
    assert "one of ours" in head["receiver"]


def test_noise_is_said_where_others_used_the_machine():
    assert report.noise_of([run(0.05)]) is None
    assert "50% of a core in 1 of 2 runs" in str(report.noise_of([run(0.5), run(0.0)]))
    assert report.noise_of([run(measures.NOISE)]) is None
