"""The stores of a worker, on a database of a test."""

from typing import Any

from bson import ObjectId
from pymongo.database import Database

from tests.lab.logs import COMPANY
from webhooks.delivery.records import DeliveryRecords
from webhooks.models import COTWebhook
from webhooks.store.deliveries import DeliveryStore
from webhooks.store.gates import GateStore
from webhooks.store.held import HeldDeliveries
from webhooks.store.leases import Leases
from webhooks.store.logs import LogStore
from webhooks.store.webhooks import WebhookStore

Documents = Database[dict[str, Any]]


class WorkerStores:
    """What a worker's services have of stores. Passes for the services, with what a test adds."""

    def __init__(self, database: Documents, claim_s: float, leases: Leases | None = None) -> None:
        self.database = database
        self.deliveries = DeliveryStore(database, claim_s, 10, leases=leases)
        self.held = HeldDeliveries(database, self.deliveries)
        self.logs, self.gates, self.webhooks = LogStore(database), GateStore(database), WebhookStore(database)
        self.records = DeliveryRecords(self.deliveries, self.held, self.logs, self.gates, self.webhooks)
        self.services: Any = self

    def add_webhook(self, webhook_id: ObjectId | None = None, **changes: Any) -> ObjectId:
        """Store a webhook for tasks; return its id."""
        webhook_id = webhook_id or ObjectId()
        value = {
            "_id": str(webhook_id),
            "company": COMPANY,
            "isActive": True,
            "trigger": "create-edit-delete-task",
            "url": "https://receiver.example/x",
            "code": f"code_{webhook_id}",
            **changes,
        }
        self.database["webhooks"].insert_one(COTWebhook.model_validate(value).to_bson())
        return webhook_id
