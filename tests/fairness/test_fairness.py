"""Every scenario at the size that fits CI. Figures are reported; a busy machine fails only by the coarse bars."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.fairness.conftest import ROWS
from tests.fairness.scenarios import SCENARIOS
from tests.fairness.sizes import CI, Scenario

# Each takes up to a minute on two cores.
pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("installed_servers")]


def _param(scenario: Scenario):
    marks = [pytest.mark.slow] if scenario.measures_speed else []
    return pytest.param(scenario, id=scenario.name, marks=marks)


@pytest.mark.parametrize("scenario", [_param(scenario) for scenario in SCENARIOS])
def test_scenario(scenario: Scenario, tmp_path: Path, record_property: Callable[[str, object], None]):
    rows = scenario.run(tmp_path / scenario.name, CI, print)
    record_property(ROWS, json.dumps([asdict(row) for row in rows]))
    assert [(row.what, row.found, row.bar) for row in rows if CI.has_failed(row)] == []
