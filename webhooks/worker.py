"""How a message looks from outside: in Flower, in `celery inspect` and in a worker's log.

Owns the request class of ``webhooks.deliver``. Celery's own shows arguments as the producer described them, and a
producer with nothing but Celery describes an event by its payload. Loaded in workers only.
"""

from typing import Any

from celery.worker.request import Request

from webhooks.delivery import describe_input


class DeliverRequest(Request):
    """A received ``webhooks.deliver`` message whose payload is not shown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What the log of a task reads. Constant, as describing an event costs more than most messages need.
        self._request_dict["argsrepr"] = self._request_dict["kwargsrepr"] = "…"

    @property
    def argsrepr(self) -> str:
        """What Flower and `celery inspect` show as arguments."""
        return describe_input([*self._args, *self._kwargs.values()])

    @property
    def kwargsrepr(self) -> str:
        """Nothing: an event given by keyword is described with the arguments."""
        return ""
