"""The fault matrix at the size that fits CI: nothing is lost, nothing is stuck, and repeats are within the bound.

All rows that were asked for run beside each other, started by the first test; each test waits for its own row.
"""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from tests.faults.conftest import RESULTS
from tests.faults.matrix import CI, ROWS, Result, run_matrix
from webhooks.errors import ServerMissing
from webhooks.local import servers

# All rows together take three to four minutes on two cores.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Result]]]:
    try:
        servers.find_valkey()
        servers.find_mongod()
    except ServerMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    wanted = {item.callspec.id for item in request.session.items if isinstance(item, pytest.Function)
              and item.originalname == test_row.__name__}  # fmt: skip
    cancelled = threading.Event()
    started = run_matrix([row for row in ROWS if row.id in wanted], CI, tell=print, cancelled=cancelled)
    try:
        yield started
    finally:
        cancelled.set()
        for future in started.values():
            future.exception()  # waits for its end: no process is left behind


@pytest.mark.parametrize("row_id", [row.id for row in ROWS])
def test_row(running: dict[str, Future[Result]], row_id: str, pytestconfig: pytest.Config):
    result = running[row_id].result()
    pytestconfig.stash.setdefault(RESULTS, []).append(result)
    assert result.faults == []
