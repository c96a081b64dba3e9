"""Many callers' single operations carried out together: one round trip and one journal flush for all of them.

Owns the waiting room and its thread, never the operation. Under load a batch gathers while the one before is carried
out, so it grows by itself; a lone caller waits for nobody. Used for the ledger and the logs.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Batcher(Generic[_Item, _Result]):
    """Carries out items in batches, in one thread of its own that starts with the first item."""

    def __init__(
        self, name: str, carry_out: Callable[[Sequence[_Item]], Sequence[_Result | Exception]], max_items: int
    ) -> None:
        """Make a waiting room.

        Args:
            name: of the thread.
            carry_out: gets the items of a batch and returns a result, or an error, for each, in their order. What it
                raises is raised to the callers of all of them.
            max_items: of one batch.
        """
        self._name = name
        self._carry_out = carry_out
        self._max_items = max_items
        self._waiting: deque[tuple[_Item, Future[_Result]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __call__(self, item: _Item) -> _Result:
        """Carry out one item, together with others', and return when its batch is done.

        Raises:
            Exception: what happened to this item, or to its whole batch.
        """
        future: Future[_Result] = Future()
        with self._changed:
            self._waiting.append((item, future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify()
        return future.result()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_items))]
            try:
                results = self._carry_out([item for item, _ in batch])
            except Exception as error:  # noqa: BLE001 - it is the callers' to judge
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
