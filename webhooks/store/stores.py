"""The stores of a command or a page, opened on first use."""

from functools import cached_property

from pymongo.database import Database

from webhooks.config import get_settings
from webhooks.store.actions import ActionStore
from webhooks.store.deadletters import DeadLetterStore
from webhooks.store.deliveries import DeliveryStore
from webhooks.store.failed import FailedStore
from webhooks.store.gates import GateStore
from webhooks.store.held import HeldDeliveries
from webhooks.store.leases import WorkerStore
from webhooks.store.logs import LogStore
from webhooks.store.mongo import Document, open_database
from webhooks.store.outbox import Outbox
from webhooks.store.overview import OverviewStore
from webhooks.store.pending_details import PendingDetailsStore
from webhooks.store.resend_jobs import ResendJobStore
from webhooks.store.search import LogSearch
from webhooks.store.statistics import StatisticsStore
from webhooks.store.tokens import TokenStore
from webhooks.store.traces import TraceStore
from webhooks.store.webhooks import WebhookStore


class Stores:
    """Opens each store on first use, with the database of the settings."""

    @cached_property
    def _database(self) -> Database[Document]:
        return open_database(get_settings().mongodb_url, get_settings().mongodb_timeout_s)

    @cached_property
    def webhooks(self) -> WebhookStore:
        """Webhooks."""
        return WebhookStore(self._database)

    @cached_property
    def logs(self) -> LogStore:
        """Logs."""
        return LogStore(self._database)

    @cached_property
    def actions(self) -> ActionStore:
        """What operators did."""
        return ActionStore(self._database)

    @cached_property
    def outbox(self) -> Outbox:
        """Events that producers wrote down and that are not queued yet."""
        return Outbox(self._database)

    @cached_property
    def tokens(self) -> TokenStore:
        """Tokens of the read API."""
        return TokenStore(self._database)

    @cached_property
    def traces(self) -> TraceStore:
        """Events that no webhook asked for."""
        return TraceStore(self._database)

    @cached_property
    def search(self) -> LogSearch:
        """Pages of logs."""
        return LogSearch(self._database)

    @cached_property
    def failed(self) -> FailedStore:
        """Deliveries that failed."""
        return FailedStore(self._database)

    @cached_property
    def resend_jobs(self) -> ResendJobStore:
        """Jobs that resend deliveries."""
        return ResendJobStore(self._database)

    @cached_property
    def dead_letters(self) -> DeadLetterStore:
        """Dead letters."""
        return DeadLetterStore(self._database)

    @cached_property
    def gates(self) -> GateStore:
        """Gates."""
        return GateStore(self._database)

    @cached_property
    def deliveries(self) -> DeliveryStore:
        """The ledger."""
        return DeliveryStore(self._database, get_settings().claim_s, get_settings().mongodb_timeout_s)

    @cached_property
    def held(self) -> HeldDeliveries:
        """Held deliveries."""
        return HeldDeliveries(self._database, self.deliveries)

    @cached_property
    def workers(self) -> WorkerStore:
        """Workers that are alive."""
        return WorkerStore(self._database)

    @cached_property
    def statistics(self) -> StatisticsStore:
        """Counts of attempts."""
        return StatisticsStore(self._database)

    @cached_property
    def overview(self) -> OverviewStore:
        """Counts of everything."""
        return OverviewStore(self._database)

    @cached_property
    def pending(self) -> PendingDetailsStore:
        """Pending deliveries, for people."""
        return PendingDetailsStore(self._database)

    def close(self) -> None:
        """Close the connections, if any was opened."""
        if "_database" in self.__dict__:
            self._database.client.close()
