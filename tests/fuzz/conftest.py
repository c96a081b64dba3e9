"""How long to look: in CI always the same examples, within a minute; by hand for as long as you like.

python -m pytest tests/fuzz --hypothesis-profile=long
"""

import pytest
from hypothesis import HealthCheck, settings

from tests.acceptance.conftest import stack

__all__ = ["stack"]

# The servers and the environment of a test are shared by its examples.
_SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]

settings.register_profile(
    "quick", max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=_SHARED
)
settings.register_profile("long", max_examples=5_000, deadline=None, suppress_health_check=_SHARED)


def pytest_configure(config: pytest.Config) -> None:
    """Choose the quick profile unless somebody named another."""
    if not config.getoption("--hypothesis-profile", None):
        settings.load_profile("quick")
