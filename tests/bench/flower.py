"""Reads Flower's task page again and again, as an open browser does."""

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Seconds between two reads.
_EVERY_S = 2.0
#: What the page asks for: the newest tasks first.
_PAGE = (
    "/tasks/datatable?draw=1&start=0&length=15&search[value]=&order[0][column]=0&order[0][dir]=desc"
    "&columns[0][data]=received"
)


@contextmanager
def read_tasks(url: str) -> Iterator[threading.Event]:
    """Read the page in a thread while the context lasts; yields an event that is set after the first time."""
    is_over, has_read = threading.Event(), threading.Event()

    def run() -> None:
        while not is_over.wait(_EVERY_S if has_read.is_set() else 0.2):
            with suppress(OSError):  # not up yet, or too busy
                with urllib.request.urlopen(url + _PAGE, timeout=30) as answer:
                    answer.read()
                has_read.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield has_read
    finally:
        is_over.set()
        thread.join()
