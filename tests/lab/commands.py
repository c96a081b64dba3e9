"""What tests of the command share; its fixtures are in `tests/integration/conftest.py`."""

import json
from collections.abc import Callable

from click.testing import Result

from tests.lab.logs import COMPANY

OTHER_COMPANY = "625bcbdcc9a8e3a86dbf041d"
#: Seconds for what takes one or two, on a machine that runs other things beside.
PATIENCE_S = 40


def add(run: Callable[..., Result], code: str = "wo_update", company: str = COMPANY, *more: str) -> str:
    """Add a webhook; return its id."""
    trigger = ["--trigger", "create-edit-delete-task", "--url", "https://www.server.example"]
    result = run("add", "--company", company, "--code", code, *trigger, "--json", *more)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["_id"]
