"""The table of fairness, at the end of a run."""

import json

import pytest

from tests.fairness.rows import Row, to_markdown
from tests.lab.tables import read_lines

#: The property of a test's report that carries its rows.
ROWS = "fairness-rows"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if rows := [Row(**row) for line in read_lines(terminalreporter, ROWS) for row in json.loads(line)]:
        terminalreporter.section("fairness")
        terminalreporter.write_line(to_markdown(rows))
