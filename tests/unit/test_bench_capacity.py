"""What a capacity page computes, and that its script computes the same."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.bench.__main__ import bench as bench_command
from tests.bench.capacity import ASSUMPTIONS, COSTS, DEFAULTS, FORMULAS, LINES, RATES, need, show, sources_of
from tests.bench.page import render
from tests.bench.rows import FIGURES
from tests.bench.stored import InvalidRun, read_run

MEASURED: dict[str, float] = {
    "cpu_workers": 600,
    "cpu_valkey": 100,
    "cpu_queueing": 30,
    "cpu_mongod": 160,
    "memory": 150,
    "redis_bytes": 4_000,
    "waiting_redis": 1_400,
    "waiting_mongodb": 2_300,
    "log_bytes": 2_600,
    "log_index_bytes": 200,
    "traffic_redis": 4_500,
    "traffic_mongodb": 5_300,
}
ALL = {**MEASURED, "event_bytes": 2_048}


def run_json() -> dict[str, Any]:
    """Return a run as `python -m tests.bench --json` writes it, with the costs above."""
    return {
        "machine": {
            "cores": 2,
            "cpu": "<script>alert(1)</script>",
            "memory_mb": 8_000,
            "system": "Linux",
            "python": "3.11",
            "webhooks": "0",
            "broker": "valkey 9",
            "mongod": "6",
        },
        "plan": {"workers": 2, "event_bytes": 2_048, "sizes": {"rounds": 1, "events": 5_000}},
        "figures": {
            key: {
                "unit": FIGURES[key].unit,
                "value": float(value),
                "samples": [float(value)],
                "note": "</script><b>",
            }
            for key, value in MEASURED.items()
        },
        "noise": None,
    }


def test_needs_of_ten_thousand_by_hand():
    needs = need(ALL, DEFAULTS, 10_000)
    # 5 % retries; 600 µs each at 60 % of a core; 16 cores a host.
    assert needs["attempts"] == 10_500
    assert needs["processes"] == math.ceil(10_500 * 600e-6 / 0.6) == 11
    assert needs["hosts"] == 1
    # 0.2 s each under way, over 11 processes at 60 %.
    assert needs["in_flight"] == pytest.approx(2_100)
    assert needs["concurrency"] == math.ceil(2_100 / 11 / 0.6)
    # 1.05 s of scripts and 0.3 s of queueing per second; 24 GB of backlog in shards of 16.
    assert needs["redis_by_cpu"] == math.ceil(1.35 / 0.6) == 3
    assert needs["redis_by_memory"] == 2
    assert needs["redis_shards"] == needs["cells"] == 3 or needs["cells"] == needs["mongodb_shards"]
    assert needs["mongodb_by_cpu"] == math.ceil(1.68 / 0.6 / 16) == 1
    # 10,500 × 2,800 bytes × 86,400 s.
    assert needs["log_per_day"] == pytest.approx(2.540, abs=0.001)
    assert needs["mongodb_by_disk"] == math.ceil(2.540 * 30 / 4)


def test_numbers_name_what_they_come_from():
    assert sources_of("processes") == ["cpu_workers", "utilisation"]
    assert sources_of("hosts") == ["cores"]
    assert sources_of("redis_by_memory") == [
        *("backlog_s", "redis_bytes", "retry_percent", "waiting_redis", "redis_gb")
    ]
    # Every cost and assumption counts somewhere.
    told = {source for lines in LINES.values() for line in lines for source in sources_of(line.key)}
    assert told | {"event_bytes"} >= {*ALL, *DEFAULTS}
    assert {line.key for lines in LINES.values() for line in lines} <= FORMULAS.keys()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3, "3"), (1234567, "1,234,567"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.0123")],
)
def test_numbers_as_people_read_them(value: float, text: str):
    assert show(value) == text


def test_page_needs_nothing_besides_and_shows_what_was_computed():
    page = render(read_run(run_json()))
    assert "http://" not in page
    assert "https://" not in page
    assert "<script>alert" not in page
    assert "</script><b>" not in page
    for column, rate in enumerate(RATES):
        needs = need(ALL, DEFAULTS, rate)
        for line in (line for lines in LINES.values() for line in lines):
            assert f'data-column="{column}" data-key="{line.key}">{show(needs[line.key])}<' in page
    assert all(f'name="{assumption.key}"' in page for assumption in ASSUMPTIONS)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js to run the page's script")
def test_script_computes_the_same():
    page = render(read_run(run_json()))
    function = re.search(r"function need\(costs, given, rate\) \{.*?\n  \}\n", page, re.DOTALL)
    data = re.search(r'<script type="application/json" id="run">(.*?)</script>', page, re.DOTALL)
    assert function
    assert data
    other = {**DEFAULTS, "retry_percent": 40.0, "utilisation": 35.0, "answer_ms": 900.0}
    code = (
        f"const run = {data[1]}; {function[0]}"
        f"const found = [need(run.costs, {json.dumps(DEFAULTS)}, 1e6), need(run.costs, {json.dumps(other)}, 77)];"
        "console.log(JSON.stringify(found))"
    )
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True, timeout=60)
    for found, expected in zip(json.loads(done.stdout), [need(ALL, DEFAULTS, 1e6), need(ALL, other, 77)], strict=True):
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("key", COSTS)
def test_run_without_a_cost_names_it(key: str):
    data = run_json()
    del data["figures"][key]
    with pytest.raises(InvalidRun, match=rf"figures\.{key}: is missing; make one with `python -m tests.bench"):
        render(read_run(data))


def test_command_makes_a_page_of_an_earlier_run(tmp_path: Path):
    stored, page = tmp_path / "run.json", tmp_path / "page.html"
    stored.write_text(json.dumps(run_json()))
    done = CliRunner().invoke(bench_command, ["--from", str(stored), "--html", str(page)])
    assert (done.exit_code, done.output) == (0, "")
    assert "What it takes to deliver webhooks" in page.read_text()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "holds no JSON"),
        ("[]", "the whole: "),
        ("{}", "machine: is missing"),
        (json.dumps({**run_json(), "plan": 1}), "plan: "),
        (json.dumps({**run_json(), "figures": {}}), "figures.cpu_workers: is missing"),
    ],
)
def test_command_says_what_is_wrong_with_a_file(tmp_path: Path, content: str, text: str):
    stored = tmp_path / "run.json"
    stored.write_text(content)
    done = CliRunner().invoke(bench_command, ["--from", str(stored), "--html", str(tmp_path / "page.html")])
    assert done.exit_code == 2
    assert text in done.output
    assert "Traceback" not in done.output


def test_command_asks_for_what_a_page_needs(tmp_path: Path):
    done = CliRunner().invoke(bench_command, ["--from", str(tmp_path / "run.json")])
    assert (done.exit_code, "--html" in done.output) == (2, True)
    done = CliRunner().invoke(bench_command, ["--only", "a", "--html", str(tmp_path / "page.html")])
    assert (done.exit_code, "rows a and waiting" in done.output) == (2, True)
