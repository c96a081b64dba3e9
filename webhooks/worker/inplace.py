"""A ``webhooks.send`` message that no broker carries: for first attempts made by the worker that accepted the event."""

from collections.abc import Callable, Mapping
from typing import Any

from webhooks.delivery.queueing import child_headers, lane_headers
from webhooks.rules.lanes import SEND_QUEUE
from webhooks.store.deliveries import Claim, Delivery


class InPlaceMessage:
    """The part of kombu's message interface that Celery's strategy and `Request` use."""

    content_type = "application/json"
    content_encoding = "utf-8"
    errors = None
    properties: Mapping[str, Any] = {"priority": 0}
    delivery_info: Mapping[str, Any] = {"exchange": "", "routing_key": SEND_QUEUE}

    def __init__(
        self,
        delivery: Delivery,
        claim: Claim,
        parent: Mapping[str, Any],
        on_end: Callable[[], object],
        on_give_back: Callable[[str], object],
    ) -> None:
        """Make the message of an attempt.

        Args:
            delivery: the delivery to attempt.
            claim: the claim on the attempt.
            parent: headers of the event's task.
            on_end: called when Celery acks or drops the message.
            on_give_back: called with the reason when Celery requeues the message.
        """
        self.claim = claim
        self._on_end = on_end
        self._on_give_back = on_give_back
        #: The pool's job, between `put_job` and `take_job`.
        self._job: Any = None
        self.acknowledged = False
        self.payload = ((), {"delivery_id": delivery.delivery_id}, None)
        self.body = b'[[], {"delivery_id": "%s"}, null]' % delivery.delivery_id.encode()
        self.headers: dict[str, Any] = {
            "lang": "py",
            "task": "webhooks.send",
            "id": delivery.delivery_id,
            "retries": 0,
            "root_id": parent.get("root_id") or parent["id"],
            "parent_id": parent["id"],
            "argsrepr": delivery.label,
            "kwargsrepr": "retry 0",
            "ignore_result": True,
            "stamped_headers": parent.get("stamped_headers"),
            "stamps": parent.get("stamps"),
            **child_headers(parent, lane_headers(delivery.lane, delivery.rate)),
        }

    def put_job(self, job: Any) -> None:
        """Keep the pool's job until the next call of `take_job`."""
        self._job = job

    def take_job(self) -> Any:
        """Return the pool's job, once; None if the task was revoked, as Celery then does not apply it.

        The job refers to this message. Kept, it would be part of a cycle that only the garbage collector ends.
        """
        job, self._job = self._job, None
        return job

    def ack(self, *_: object) -> None:
        """Ack it, as Celery's ``on_ack``."""
        if not self.acknowledged:
            self.acknowledged = True
            self._on_end()

    def reject(self, logger: object, errors: object, requeue: bool = False) -> None:
        """Drop or requeue it, as Celery's ``on_reject``."""
        if not requeue:
            self.ack()
        elif not self.acknowledged:
            self.acknowledged = True
            self._on_give_back("an attempt of it was given back")
