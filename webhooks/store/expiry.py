"""Indexes by which MongoDB deletes documents some days after a date in them."""

import logging

from pymongo import DESCENDING
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from webhooks.store.mongo import Document, store_errors

logger = logging.getLogger(__name__)

_SECONDS_PER_DAY = 86_400
_INDEX_OPTIONS_CONFLICT = 85
_UNAUTHORIZED = 13


def ensure_expiry(collection: Collection[Document], field: str, name: str, ttl_days: int) -> None:
    """Make the index, or find it made; it also answers "the newest of all".

    Args:
        collection: which.
        field: the date.
        name: of the index.
        ttl_days: days until a document expires; 0 keeps documents for ever. A changed value holds for old ones, too.
    """
    expiry: Document = {"expireAfterSeconds": ttl_days * _SECONDS_PER_DAY} if ttl_days else {}
    with store_errors():
        try:
            collection.create_index([(field, DESCENDING)], name=name, **expiry)
        except OperationFailure as error:
            if error.code != _INDEX_OPTIONS_CONFLICT:
                raise
            try:
                _change(collection, field, name, expiry)
            except OperationFailure as refusal:
                if refusal.code != _UNAUTHORIZED:
                    raise
                logger.warning("WEBHOOKS_LOG_TTL_DAYS is not in force: changing it once needs the role dbAdmin")


def _change(collection: Collection[Document], field: str, name: str, expiry: Document) -> None:
    # collMod can change an expiry and, from MongoDB 5.1 on, add one; taking it away needs a new index.
    if expiry:
        collection.database.command("collMod", collection.name, index={"name": name, **expiry})
    else:
        collection.drop_index(name)
        collection.create_index([(field, DESCENDING)], name=name)
