"""Tables that a run prints at its end: rows travel in the reports of tests, which may run in other processes."""

import pytest


def read_lines(reporter: pytest.TerminalReporter, name: str) -> list[str]:
    """Return what tests recorded under a property's name, in the order in which they ended."""
    reports = [report for key in ("passed", "failed") for report in reporter.stats.get(key, [])]
    return [value for report in reports for key, value in report.user_properties if key == name]
