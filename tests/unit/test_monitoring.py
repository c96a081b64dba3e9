"""The files of docs/monitoring against the metrics that the code makes; Prometheus's own tool judges the rules."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from tests.lab.pages import ROOT, page, table
from tests.unit.test_meters import log
from tests.unit.test_metrics import BROKER, DATABASE, FACTS, STATE, samples
from webhooks.delivery.meters import EventResult, Fault, Meters
from webhooks.metrics.families import SYSTEM, WORKER, Metric, make_registry, system_families, worker_families
from webhooks.metrics.system import System

FOLDER = ROOT / "docs" / "monitoring"
RULES = (FOLDER / "alerts.yml").read_text()
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
ALERTS = re.findall(r"- alert: (\w+)", RULES)


def exposed(metric: Metric) -> set[str]:
    """Return the names of a metric's series."""
    suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
    return {metric.name + suffix for suffix in suffixes}


NAMES = {name for metric in (WORKER | SYSTEM).values() for name in exposed(metric)}


def used(text: str) -> set[str]:
    return set(re.findall(r"\bwebhooks_\w+", text))


@pytest.mark.parametrize(("head", "metrics"), [("Metric of a worker", WORKER), ("Metric of the system", SYSTEM)])
def test_metrics_are_those_of_the_code(head: str, metrics: dict[str, Metric]):
    expected = [
        [f"`{one.name}`", one.kind, ", ".join(f"`{label}`" for label in one.labels), one.help]
        for one in metrics.values()
    ]
    assert table(page("monitoring"), head) == expected


def test_kinds_of_faults_are_all_there():
    assert [row[0].strip("`") for row in table(page("monitoring"), "`kind`")] == list(Fault)


def test_alerts_are_all_there():
    assert [row[0].strip("`") for row in table(page("monitoring"), "Alert")] == ALERTS


def test_rules_and_dashboard_use_metrics_that_exist():
    panels = used(json.dumps(DASHBOARD["panels"]))
    assert (panels | used(RULES)) - NAMES == set()
    assert len(panels) > 20


@pytest.mark.parametrize("metric", SYSTEM.values(), ids=lambda metric: metric.name)
def test_metrics_of_the_system_are_not_summed_over_processes(metric: Metric):
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    expressions += [line for line in RULES.splitlines() if "webhooks_" in line]
    for expression in expressions:
        for found in re.finditer(rf"\b{metric.name}\b", expression):
            assert re.search(r"max( by \([\w, ]+\))? ?\((increase\()?$", expression[: found.start()]), expression


# ── promtool ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Now:
    """What is the case in one minute of a scenario."""

    meters: Meters
    system: System = field(default_factory=lambda: WELL)
    #: Whether the worker runs.
    is_up: bool = True
    is_ready: bool = True
    in_flight: int = 3


QUEUE = replace(BROKER.queues[0], waiting=0, oldest_s=None)
WELL = System(
    replace(BROKER, queues=[QUEUE], facts={**FACTS, "maxmemory_policy": "noeviction"}),
    replace(DATABASE, overdue_s=0.0, dead_letters=0, endpoints={("open", ""): 5, ("paused", "health"): 0}),
)
MINUTES = 30
SUCCEEDED, FAILED = log(200), log(500)


def work(now: Now, succeeded: int = 60, failed: int = 0) -> None:
    """Have events come and attempts be made."""
    for _ in range(succeeded or failed):
        now.meters.count_event(EventResult.MATCHED)
    made = [SUCCEEDED] * succeeded + [FAILED] * failed
    now.meters.count_attempts([(one, None) for one in made], None)


def read(now: Now) -> dict[str, float]:
    """Return what a scrape finds, by series in Prometheus's notation."""
    job = 'job="webhooks",instance="worker:9464"'
    if not now.is_up:
        return {f"up{{{job}}}": 0}
    state = replace(STATE, is_ready=now.is_ready, in_flight=now.in_flight)
    registry = make_registry(lambda: [*worker_families(now.meters, state), *system_families(now.system)])
    found = samples(generate_latest(registry).decode())
    series = {}
    for (name, labels), value in found.items():
        quoted = re.sub(r"=([^,]*)", r'="\1"', labels)
        series[f"{name}{{{job}{',' if quoted else ''}{quoted}}}"] = value
    return {f"up{{{job}}}": 1, **series}


def record(act: Callable[[Now, int], None]) -> list[dict[str, str]]:
    """Return half an hour of a scenario as promtool takes it."""
    now, minutes = Now(Meters()), []
    now.meters.is_on = True
    for minute in range(MINUTES + 1):
        act(now, minute)
        minutes.append(read(now))
    names = sorted({name for found in minutes for name in found})
    values = {name: [f"{one[name]:g}" if name in one else "stale" for one in minutes] for name in names}
    return [{"series": name, "values": " ".join(found)} for name, found in values.items()]


def _well(now: Now, minute: int) -> None:
    work(now)


def _no_worker(now: Now, minute: int) -> None:
    now.is_up = minute < 10
    work(now)


def _redis_away(now: Now, minute: int) -> None:
    if minute < 10:
        work(now)
    else:
        now.system, now.is_ready = replace(WELL, broker=None), False


def _mongodb_away(now: Now, minute: int) -> None:
    if minute < 10:
        work(now)
        return
    assert WELL.broker is not None
    queue = replace(WELL.broker.queues[0], queue="webhooks.deliver", waiting=50, oldest_s=60.0 * (minute - 10))
    now.system, now.is_ready = System(replace(WELL.broker, queues=[queue]), None), False


def _failing(now: Now, minute: int) -> None:
    work(now, 40 if minute < 10 else 10, 0 if minute < 10 else 30)


def _stuck(now: Now, minute: int) -> None:
    if minute < 10:
        work(now)
    assert WELL.database is not None
    now.system = replace(WELL, database=replace(WELL.database, overdue_s=max(0.0, 60.0 * (minute - 10))))


def _to_be_looked_at(now: Now, minute: int) -> None:
    work(now)
    assert WELL.database is not None
    if minute == 10:
        now.meters.count_fault(Fault.MESSAGE_LOST)
        endpoints = {("open", ""): 4, ("paused", "health"): 1}
        changed = replace(WELL.database, dead_letters=1, endpoints=endpoints, oldest_s=90_000.0)
        now.system = replace(WELL, database=changed)


def _full_redis(now: Now, minute: int) -> None:
    work(now)
    assert WELL.broker is not None
    if minute >= 10:
        facts = {"used_memory": 900, "maxmemory": 1000, "evicted_keys": minute, "maxmemory_policy": "allkeys-lru"}
        now.system = replace(WELL, broker=replace(WELL.broker, facts=facts))


def _saturated(now: Now, minute: int) -> None:
    work(now)
    now.in_flight = 3 if minute < 10 else 250


#: Name → what happens from minute 10 on, and which alerts fire in minute 20.
SCENARIOS: dict[str, tuple[Callable[[Now, int], None], set[str]]] = {
    "well": (_well, set()),
    "no worker": (_no_worker, {"WebhooksNoWorker", "WebhooksWorkerDown"}),
    "redis away": (_redis_away, {"WebhooksServerAway", "WebhooksNotReady"}),
    "mongodb away": (
        _mongodb_away,
        {"WebhooksServerAway", "WebhooksNotReady", "WebhooksNothingDelivered", "WebhooksEventsWait"},
    ),
    "failing": (_failing, {"WebhooksFailing", "WebhooksEndpointFailing"}),
    "stuck": (_stuck, {"WebhooksNothingDelivered", "WebhooksOverdue"}),
    "to be looked at": (
        _to_be_looked_at,
        {"WebhooksFaults", "WebhooksDeadLetters", "WebhooksEndpointPaused", "WebhooksOldestPending"},
    ),
    "full redis": (_full_redis, {"WebhooksRedisEvicts", "WebhooksRedisFull"}),
    "saturated": (_saturated, {"WebhooksSaturated"}),
}


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is missing: it comes with Debian's package prometheus")
    return found


def run_promtool(tool: str, *arguments: str) -> None:
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_valid(promtool: str):
    run_promtool(promtool, "check", "rules", str(FOLDER / "alerts.yml"))


def test_alerts_fire_where_they_should_and_nowhere_else(promtool: str, tmp_path: Path):
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'

    def expect(at: str, alerts: set[str]) -> dict[str, Any]:
        expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(alerts)]
        return {"expr": firing, "eval_time": at, "exp_samples": expected}

    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": record(act),
            "promql_expr_test": [expect("9m", set()), expect("20m", alerts)],
        }
        for name, (act, alerts) in SCENARIOS.items()
    ]
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps({"rule_files": [str(FOLDER / "alerts.yml")], "tests": tests}))  # JSON is YAML
    run_promtool(promtool, "test", "rules", str(path))


def test_every_alert_fires_in_a_scenario():
    assert set.union(*(alerts for _, alerts in SCENARIOS.values())) == set(ALERTS)
