"""Ledger and logs kept together: what many threads ask for at one time shares a write.

Owns the order of the writes. Each caller goes on, and its message is acked, only after its own write is confirmed
(`mongo.open_database` says by what). Used by `tasks`.
"""

from collections.abc import Sequence

from webhooks.batching import Batcher
from webhooks.ledger import Blocked, Claim, Claimed, Delivery, Ledger
from webhooks.logstore import LogStore
from webhooks.models import COTWebhookLog

#: Items that share a write. A batch gathers while the one before is written, so it is seldom as large; the bound keeps
#: one write well under MongoDB's 48 MB, with events of the largest size allowed by default in each log.
MAX_BATCH = 100


class Books:
    """What is owed and what was done. Every method raises StoreUnavailable when MongoDB cannot serve us now."""

    def __init__(self, ledger: Ledger, logs: LogStore) -> None:
        self._ledger = ledger
        self._logs = logs
        self._accepts: Batcher[list[Delivery], list[Delivery]] = Batcher("accept", self._accept_all, MAX_BATCH)
        self._claims: Batcher[Claim, Claimed | Blocked | None] = Batcher("claim", ledger.claim, MAX_BATCH)
        self._records: Batcher[COTWebhookLog, None] = Batcher("record", self._record_all, MAX_BATCH)

    def accept(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Write down the deliveries of one event.

        Returns:
            Those that are owed now: all but the ones that ended when the event's message was handled before.
        """
        return self._accepts(deliveries) if deliveries else []

    def claim(self, claim: Claim) -> Claimed | Blocked | None:
        """Ask for an attempt, as `Ledger.claim` does.

        Raises:
            LookupError: the delivery's event is not stored.
        """
        return self._claims(claim)

    def record(self, log: COTWebhookLog) -> None:
        """Write an attempt's log, and what is owed next.

        Raises:
            pymongo.errors.WriteError: MongoDB cannot hold this log; what is owed is written all the same.
        """
        self._records(log)

    def _accept_all(self, events: Sequence[list[Delivery]]) -> list[list[Delivery]]:
        # A message that was handled before and comes again (its worker died before the ack, Redis was put back to an
        # old state) must not bring back what has ended since. The logs know.
        ended = self._logs.find_ended([deliveries[0].event_id for deliveries in events])
        owed = [[delivery for delivery in deliveries if delivery.delivery_id not in ended] for deliveries in events]
        self._ledger.add((delivery for deliveries in owed for delivery in deliveries), self._ledger.now())
        return owed

    def _record_all(self, logs: Sequence[COTWebhookLog]) -> list[Exception | None]:
        # The log first. If we die in between, the attempt is made again and leaves a second log with the same
        # delivery id: a repeat that can be seen. The other way round an attempt could be without a log.
        faults = self._logs.write(logs)
        self._ledger.settle(logs)
        return [faults.get(place) for place in range(len(logs))]
