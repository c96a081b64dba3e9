"""The collection ``webhooks``: cached reads for workers, and changes by operators.

Other services write to it as well. A document that breaks the contract is named in the log and gets no events.
"""

import logging
import re
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any

from bson import ObjectId
from pydantic import ValidationError
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from webhooks.errors import InvalidWebhook
from webhooks.models import TRIGGERS, Context, COTWebhook, UnusableWebhook, parse_webhook
from webhooks.models.wire import show
from webhooks.store.mongo import Document, store_errors

logger = logging.getLogger(__name__)

#: Seconds that a cached webhook is used. A change must take effect within 5 s, which includes the read itself.
CACHE_S = 2.0
#: Maximum entries of a cache; a full cache is cleared.
_CACHE_SIZE = 10_000
#: What of a webhook's secrets and headers is not secret.
_SHOWN_OF = {"secrets": ("id", "scheme", "public", "createdAt", "expiresAt"), "headers": ("name", "value")}
#: What a company may see: the contract's fields in the order of its sample, then this project's.
_FOR_COMPANY = ("_id", "company", "isActive", "trigger", "url", "name", "code", "context", "__v", "description")
_FOR_COMPANY += ("ordered", "on_exhausted", "rate_limit", "rate_burst", "traced", "secrets", "headers")


@dataclass(frozen=True, slots=True)
class Deactivated:
    """A webhook that we deactivated and did not report yet."""

    webhook_id: ObjectId
    notice_id: ObjectId
    reason: str


def read_stored(document: Document) -> COTWebhook:
    """Parse a stored webhook; its ids must be ObjectIds, as lookups by text could match another company's webhook.

    Raises:
        InvalidWebhook: names every field and reason.
    """
    for field in ("_id", "company"):
        if field in document and not isinstance(document[field], ObjectId):
            raise InvalidWebhook(f"invalid webhook: {field}: must be stored as an ObjectId")
    return parse_webhook(document)


def without_secrets(document: Mapping[str, Any]) -> Document:
    """Return a stored webhook as people may see it: of what is secret only that it is there, whoever wrote it."""
    shown = dict(document)
    for field, fields in _SHOWN_OF.items():
        if field in shown and shown[field] is not None:
            items = shown[field] if isinstance(shown[field], list) else [None]
            shown[field] = [
                {key: item[key] for key in fields if key in item} if isinstance(item, Mapping) else "…"
                for item in items
            ]
    return shown


def for_company(document: Document) -> Document:
    """Return a stored webhook as its company may see it through the read API.

    Other systems' keys are left out, as they may be secret, and so are the values of all headers.
    """
    known = without_secrets({field: document[field] for field in _FOR_COMPANY if field in document})
    if isinstance(known.get("headers"), list):
        known["headers"] = [{"name": item["name"]} for item in known["headers"] if "name" in item]
    reason = why_unusable(document)
    return known if reason is None else {**known, "invalid": reason}


def why_unusable(document: Document) -> str | None:
    """Say why a stored webhook gets no events although it may be active; None when nothing is wrong with it."""
    try:
        read_stored(document)
    except InvalidWebhook as error:
        return str(error).removeprefix("invalid webhook: ")
    return None


def _is_of(company: ObjectId) -> Document:
    """Return the query for a company's webhooks; other services may store the company as text."""
    return {"company": {"$in": [company, str(company)]}}


def _read_unusable(document: Document, company: ObjectId, error: InvalidWebhook) -> UnusableWebhook | None:
    """Read the fields for matching from a webhook that breaks the contract; None if they are invalid too."""
    webhook_id, trigger, code = (document.get(field) for field in ("_id", "trigger", "code"))
    if not isinstance(webhook_id, ObjectId) or document.get("company") not in (company, str(company)):
        return None
    if not isinstance(trigger, str) or trigger not in TRIGGERS:
        return None
    given = document.get("context")
    context: dict[str, str] = {}
    for field, value in given.items() if isinstance(given, dict) else ():
        if field in Context.model_fields:
            with suppress(ValidationError):
                context[field] = getattr(Context.model_validate({field: value}), field)
    return UnusableWebhook(
        id=webhook_id,
        company=company,
        isActive=bool(document.get("isActive", True)),
        trigger=trigger,
        context=Context(**context),
        label=show(code) if isinstance(code, str) and code else str(webhook_id),
        reason=str(error).removeprefix("invalid webhook: "),
    )


@dataclass(frozen=True, slots=True)
class _OfCompany:
    """The webhooks of a company that may match events."""

    usable: tuple[COTWebhook, ...]
    unusable: tuple[UnusableWebhook, ...]


class WebhookStore:
    """Reads and changes webhooks. Every method raises StoreUnavailable when MongoDB is away."""

    def __init__(self, database: Database[Document], clock: Callable[[], float] = time.monotonic) -> None:
        self._collection = database["webhooks"]
        self._clock = clock
        self._lock = Lock()
        self._by_company: dict[ObjectId, tuple[float, _OfCompany]] = {}
        self._warnings: set[str] = set()
        self._by_id: dict[ObjectId, tuple[float, COTWebhook | None]] = {}

    def ensure_indexes(self) -> None:
        """Create missing indexes."""
        with store_errors():
            self._collection.create_index([("company", 1), ("isActive", 1)], name="company_active")
            self._collection.create_index(
                [("deactivated.told", 1)], name="deactivated", partialFilterExpression={"deactivated.told": False}
            )
            try:
                self._collection.create_index(
                    [("company", 1), ("code", 1)],
                    name="company_code",
                    unique=True,
                    # A document written by hand may have no code.
                    partialFilterExpression={"code": {"$type": "string"}},
                )
            except DuplicateKeyError:
                logger.warning("webhooks: two webhooks of one company have the same code; `webhooks list` shows them")

    def of_company(self, company: ObjectId) -> tuple[COTWebhook, ...]:
        """Return a company's active webhooks; cached."""
        return self._read_company(company).usable

    def unusable_of_company(self, company: ObjectId) -> tuple[UnusableWebhook, ...]:
        """Return a company's webhooks that may match events but break the contract; cached."""
        return self._read_company(company).unusable

    def _read_company(self, company: ObjectId) -> _OfCompany:
        cached = self._by_company.get(company)
        if cached is not None and cached[0] > self._clock():
            return cached[1]
        # Includes documents with an invalid isActive, as unusable ones.
        query = {**_is_of(company), "isActive": {"$ne": False}}
        with store_errors():
            documents = list(self._collection.find(query).sort("_id", 1))
        usable: list[COTWebhook] = []
        unusable: list[UnusableWebhook] = []
        for document in documents:
            webhook = self._check(document)
            if isinstance(webhook, COTWebhook):
                usable.append(webhook)
            elif (found := _read_unusable(document, company, webhook)) is not None:
                unusable.append(found)
        read = _OfCompany(tuple(usable), tuple(unusable))
        self._remember(self._by_company, company, read)
        for webhook in usable:
            self._remember(self._by_id, webhook.id, webhook)
        for webhook in unusable:
            self._remember(self._by_id, webhook.id, None)
        return read

    def get(self, webhook_id: ObjectId) -> COTWebhook | None:
        """Return a webhook, active or not; None if it is gone or unusable. Cached."""
        return self.get_many([webhook_id])[webhook_id]

    def get_many(self, webhook_ids: Collection[ObjectId]) -> dict[ObjectId, COTWebhook | None]:
        """Return webhooks as `get` does, with one read for all that are not cached."""
        found: dict[ObjectId, COTWebhook | None] = {}
        present = self._clock()
        for webhook_id in webhook_ids:
            cached = self._by_id.get(webhook_id)
            if cached is not None and cached[0] > present:
                found[webhook_id] = cached[1]
        missing = [webhook_id for webhook_id in webhook_ids if webhook_id not in found]
        if missing:
            with store_errors():
                documents = {one["_id"]: one for one in self._collection.find({"_id": {"$in": missing}})}
            for webhook_id in missing:
                checked = self._check(documents[webhook_id]) if webhook_id in documents else None
                found[webhook_id] = checked if isinstance(checked, COTWebhook) else None
                self._remember(self._by_id, webhook_id, found[webhook_id])
        return found

    def _remember(self, cache: dict[ObjectId, Any], key: ObjectId, value: object) -> None:
        with self._lock:
            if len(cache) >= _CACHE_SIZE:
                cache.clear()
            cache[key] = (self._clock() + CACHE_S, value)

    def _check(self, document: Document) -> COTWebhook | InvalidWebhook:
        """Parse a stored webhook; log and return the error of an invalid one."""
        try:
            return read_stored(document)
        except InvalidWebhook as error:
            warning = f"webhook {show(document.get('_id'))} gets no events until it is mended: {error}"
            if warning not in self._warnings:  # once per process, not at each read
                with self._lock:
                    if len(self._warnings) >= _CACHE_SIZE:
                        self._warnings.clear()
                    self._warnings.add(warning)
                logger.warning("%s", warning)
            return error

    def list_all(self, company: ObjectId | None = None) -> list[Document]:
        """Return the stored documents of one company or all, by company and code; not cached."""
        with store_errors():
            query = {} if company is None else _is_of(company)
            return list(self._collection.find(query).sort([("company", 1), ("code", 1), ("_id", 1)]))

    def search(self, company: ObjectId | None, trigger: str | None, text: str | None, limit: int) -> list[Document]:
        """Return stored documents, by id; never from the cache.

        Args:
            company: whose; None for any.
            trigger: with this trigger; None for any.
            text: that name, code or URL hold, in any case; None for any.
            limit: how many at most.
        """
        query: Document = {} if company is None else _is_of(company)
        if trigger is not None:
            query["trigger"] = trigger
        if text is not None:
            pattern = {"$regex": re.escape(text), "$options": "i"}
            query["$or"] = [{field: pattern} for field in ("name", "code", "url")]
        with store_errors():
            return list(self._collection.find(query).sort("_id", 1).limit(limit))

    def list_sealed(self, limit: int) -> list[Document]:
        """Return up to `limit` stored documents with a sealed value; not cached."""
        sealed: list[Document] = [{f"{field}.sealed": {"$exists": True}} for field in ("secrets", "headers")]
        with store_errors():
            return list(self._collection.find({"$or": sealed}).limit(limit))

    def find(self, reference: str, company: ObjectId | None = None) -> list[Document]:
        """Return the stored documents with this id or code, in one company or all."""
        query: Document = {"code": reference}
        if ObjectId.is_valid(reference):  # a code may look like an id
            query = {"$or": [{"_id": ObjectId(reference)}, query]}
        if company is not None:
            query |= _is_of(company)
        with store_errors():
            return list(self._collection.find(query).sort("_id", 1))

    def get_stored(self, webhook_id: ObjectId, company: ObjectId | None = None) -> Document | None:
        """Return the stored document with this id, of one company or any; not cached."""
        query = {"_id": webhook_id} | ({} if company is None else _is_of(company))
        with store_errors():
            return self._collection.find_one(query)

    def add(self, webhook: COTWebhook) -> None:
        """Store a new webhook.

        Raises:
            InvalidWebhook: its company has a webhook with this code.
        """
        with store_errors():
            try:
                self._collection.insert_one(webhook.to_bson())
            except DuplicateKeyError:
                raise InvalidWebhook(
                    f"invalid webhook: code: company {webhook.company} has {webhook.code!r} already"
                ) from None

    def replace(self, webhook: COTWebhook, field: str, before: object) -> bool:
        """Store one field of a webhook if its stored value is unchanged; return whether it was.

        Args:
            webhook: holds the new value.
            field: the field's name.
            before: the value that was read; None for a missing field.
        """
        with store_errors():
            query = {"_id": webhook.id, field: before}
            stored = webhook.to_bson()[field]
            return self._collection.update_one(query, {"$set": {field: stored}}).matched_count == 1

    def change(self, webhook: COTWebhook, fields: frozenset[str]) -> None:
        """Store only the given fields of an existing webhook; fields that it does not have are removed."""
        stored = webhook.to_bson()
        update: Document = {}
        for field in sorted(fields):
            operator, value = ("$set", stored[field]) if field in stored else ("$unset", "")
            update.setdefault(operator, {})[field] = value
        with store_errors():
            self._collection.update_one({"_id": webhook.id}, update)

    def deactivate(self, webhook_id: ObjectId, reason: str) -> bool:
        """Deactivate a webhook whose receiver wants no more events; return whether it was active.

        The reason, for `list_deactivated`, is stored in the same write.
        """
        deactivated = {"at": "$$NOW", "reason": {"$literal": reason}, "notice_id": ObjectId(), "told": False}
        with store_errors():
            done = self._collection.update_one(
                {"_id": webhook_id, "isActive": True},
                # In two steps, as the stored value may be no object.
                [{"$unset": "deactivated"}, {"$set": {"isActive": False, "deactivated": deactivated}}],
            )
        self._by_id.pop(webhook_id, None)
        return done.matched_count == 1

    def list_deactivated(self, limit: int) -> list[Deactivated]:
        """Return deactivated webhooks that operators were not told of."""
        with store_errors():
            documents = list(self._collection.find({"deactivated.told": False}, {"deactivated": 1}).limit(limit))
        found = []
        for document in documents:
            webhook_id, value = document["_id"], document.get("deactivated")
            notice_id, reason = (
                (value.get("notice_id"), value.get("reason")) if isinstance(value, dict) else (None, None)
            )
            if isinstance(webhook_id, ObjectId) and isinstance(notice_id, ObjectId) and isinstance(reason, str):
                found.append(Deactivated(webhook_id, notice_id, reason))
        return found

    def note_deactivation_told(self, deactivated: Deactivated) -> None:
        """Note that the notice of a deactivation is stored."""
        query = {"_id": deactivated.webhook_id, "deactivated.notice_id": deactivated.notice_id}
        with store_errors():
            self._collection.update_one(query, {"$set": {"deactivated.told": True}})
