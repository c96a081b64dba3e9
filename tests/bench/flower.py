"""Somebody who has Flower's task page open: it is read again and again, as a browser reads it."""

import threading
import urllib.error
import urllib.request

#: Seconds between two reads; Flower's own page reads as often when it is told to.
_EVERY_S = 2.0
#: What the page asks for: the newest tasks first.
_PAGE = (
    "/tasks/datatable?draw=1&start=0&length=15&search[value]=&order[0][column]=0&order[0][dir]=desc"
    "&columns[0][data]=received"
)


class FlowerReader:
    """Reads Flower's task page in a thread of its own while the context lasts."""

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
        """Tell whether the page has been read at least once."""
        return self._has_read.is_set()

    def _run(self) -> None:
        while not self._is_over.wait(_EVERY_S if self._has_read.is_set() else 0.2):
            try:
                with urllib.request.urlopen(self._url + _PAGE, timeout=30) as answer:
                    answer.read()
                self._has_read.set()
            except (OSError, urllib.error.URLError):
                continue  # not up yet, or too busy
