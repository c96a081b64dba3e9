"""The fault matrix's table, at the end of a run."""

import pytest

from tests.faults.matrix import to_markdown
from tests.lab.tables import read_lines

#: The property of a test's report that carries its row.
ROW = "fault-row"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines := read_lines(terminalreporter, ROW):
        terminalreporter.section("fault matrix")
        terminalreporter.write_line(to_markdown(lines))
