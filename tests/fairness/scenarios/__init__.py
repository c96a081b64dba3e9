"""All scenarios, in the order of the table."""

from collections.abc import Sequence

from tests.fairness.scenarios import hanging, loud, ordered, pause, rate, slow
from tests.fairness.sizes import Scenario

SCENARIOS: Sequence[Scenario] = (
    Scenario(hanging.NAME, hanging.run, measures_speed=True),
    Scenario(loud.NAME, loud.run, measures_speed=True),
    Scenario(rate.NAME, rate.run, measures_speed=True),
    Scenario(ordered.NAME, ordered.run),
    Scenario(pause.NAME, pause.run),
    Scenario(slow.NAME, slow.run),
)
