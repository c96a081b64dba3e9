"""Reads Flower's task page again and again, as an open browser does."""

import threading
import urllib.error
import urllib.request

#: Seconds between two reads.
_EVERY_S = 2.0
#: What the page asks for: the newest tasks first.
_PAGE = (
    "/tasks/datatable?draw=1&start=0&length=15&search[value]=&order[0][column]=0&order[0][dir]=desc"
    "&columns[0][data]=received"
)


class FlowerReader:
    """Reads in a thread while the context lasts."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_over = threading.Event()
        self._has_read = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FlowerReader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def has_read(self) -> bool:
        return self._has_read.is_set()

    def _run(self) -> None:
        while not self._is_over.wait(_EVERY_S if self._has_read.is_set() else 0.2):
            try:
                with urllib.request.urlopen(self._url + _PAGE, timeout=30) as answer:
                    answer.read()
                self._has_read.set()
            except (OSError, urllib.error.URLError):
                continue  # not up yet, or too busy
