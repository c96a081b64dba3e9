"""The fault matrix at the size that fits CI: nothing is lost, nothing is stuck, and repeats are within the bound."""

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from tests.faults.conftest import ROW
from tests.faults.matrix import run_row, to_line
from tests.faults.rows import ROWS, Row
from tests.faults.sizes import CI

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("installed_servers")]


class SharedSlots:
    """The places under load of all test processes: files, of which each is locked by who has it."""

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / f"fault-slot-{number}" for number in range(CI.slots)]
        self._held: list[IO[str]] = []

    def acquire(self, *, timeout: float) -> bool:
        for path in self._paths:
            file = path.open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
            else:
                self._held.append(file)
                return True
        time.sleep(timeout)
        return False

    def release(self) -> None:
        self._held.pop().close()


@pytest.fixture(scope="module")
def slots(tmp_path_factory: pytest.TempPathFactory) -> SharedSlots:
    base = tmp_path_factory.getbasetemp()
    return SharedSlots(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


#: Their kinds have faster tests as well, most of them in `tests/integration/test_late.py`.
_SLOW = {"twice-queued", "worker-suspended", "restored-without-gates"}


def _param(row: Row):
    return pytest.param(row, id=row.id, marks=[pytest.mark.slow] if row.id in _SLOW else [])


@pytest.mark.parametrize("row", [_param(row) for row in ROWS])
def test_row(row: Row, slots: SharedSlots, tmp_path: Path, record_property: Callable[[str, object], None]):
    result = run_row(row, CI, tmp_path / row.id, slots, threading.Event(), print)
    record_property(ROW, to_line(result, CI))
    assert result.faults == []
