"""The ids of deliveries."""

import hashlib

from bson import ObjectId

#: The first characters of a delivery's id.
DELIVERY_PREFIX = "msg_"
#: The first characters of the id of an event that is a test.
TEST_PREFIX = "test-"
#: Stands before the mark of a resent delivery in its id; no other id has it.
RESENT = "~"


def make_delivery_id(event_id: str, webhook_id: ObjectId) -> str:
    """Return the id of the delivery of an event to a webhook; receivers get it as ``webhook-id``.

    It depends on nothing else, so a redelivered message makes no second delivery. It is a hash because receivers see
    it, and Standard Webhooks allows no ``.`` in it.
    """
    digest = hashlib.sha256(f"{event_id}\0{webhook_id}".encode()).hexdigest()
    return f"{DELIVERY_PREFIX}{digest[:32]}"


def make_resent_id(delivery_id: str, mark: object) -> str:
    """Return the id of a delivery that sends another one again.

    Args:
        delivery_id: of the delivery, or of one that it was resent as.
        mark: tells it from others: how many times it was resent, or the id of the job that resends it, which so does
            it once.
    """
    return f"{wire_id(delivery_id)}{RESENT}{mark}"


def wire_id(delivery_id: str) -> str:
    """Return what the receiver gets as ``webhook-id``: the same for a delivery and for those that it is resent as."""
    return delivery_id.partition(RESENT)[0]
