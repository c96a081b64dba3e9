"""The collections that the pages read."""

from dataclasses import dataclass
from typing import Self

from pymongo.database import Database

from webhooks.config import get_settings
from webhooks.store.deliveries import Ledger
from webhooks.store.gates import GateStore
from webhooks.store.held import KeptDeliveries
from webhooks.store.logs import LogStore
from webhooks.store.mongo import Document, open_database
from webhooks.store.search import LogSearch
from webhooks.store.webhooks import WebhookStore


@dataclass(frozen=True, slots=True)
class Stores:
    """One of each, for the whole process."""

    database: Database[Document]
    webhooks: WebhookStore
    logs: LogStore
    search: LogSearch
    gates: GateStore
    ledger: Ledger
    kept: KeptDeliveries

    @classmethod
    def open(cls) -> Self:
        """Make them; connects on first use."""
        settings = get_settings()
        database = open_database(settings.mongodb_url, settings.mongodb_timeout_s)
        ledger = Ledger(database, settings.claim_s, settings.mongodb_timeout_s)
        return cls(
            database=database,
            webhooks=WebhookStore(database),
            logs=LogStore(database),
            search=LogSearch(database),
            gates=GateStore(database),
            ledger=ledger,
            kept=KeptDeliveries(database, ledger),
        )

    def close(self) -> None:
        """Close the connections."""
        self.database.client.close()
