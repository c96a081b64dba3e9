"""The table of fairness, at the end of a run."""

import pytest

from tests.fairness.rows import Row, to_markdown

#: What was measured.
ROWS = pytest.StashKey[list[Row]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if rows := config.stash.get(ROWS, []):
        terminalreporter.section("fairness")
        terminalreporter.write_line(to_markdown(rows))
