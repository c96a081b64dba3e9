"""All scenarios, in the order of the table."""

from collections.abc import Sequence

from tests.fairness.scenarios import hanging, loud, ordered, pause, rate
from tests.fairness.sizes import Scenario

SCENARIOS: Sequence[Scenario] = tuple(Scenario(each.NAME, each.run) for each in (hanging, loud, rate, ordered, pause))
