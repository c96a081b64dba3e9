"""The fault matrix's table, at the end of a run."""

import pytest

from tests.faults.matrix import CI, Result, to_markdown

#: The rows that have run.
RESULTS = pytest.StashKey[list[Result]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if results := config.stash.get(RESULTS, []):
        terminalreporter.section("fault matrix")
        terminalreporter.write_line(to_markdown(results, CI))
