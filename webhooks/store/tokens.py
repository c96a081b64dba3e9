"""The collection ``apitokens``: who may read a company's webhooks and logs through the read API.

Fields: ``_id``, ``company``, ``name``, ``hash`` (SHA-256 of the token, in hexadecimal digits), ``created_at``,
``last_used_at`` (absent until it is used). The token itself is stored nowhere.
"""

import hashlib
import re
import secrets
from contextlib import suppress
from datetime import datetime, timedelta

from bson import ObjectId
from pymongo import WriteConcern
from pymongo.database import Database

from webhooks.errors import StoreUnavailable
from webhooks.models import now
from webhooks.store.mongo import Document, store_errors

#: By which scanners of source code find a leaked token.
PREFIX = "whr_"
_BYTES = 32
_TOKEN = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}", re.ASCII)
#: How old `last_used_at` may be: a write with each request would cost more than the request.
_USE_IS_NOTED_EVERY = timedelta(minutes=1)


def _hash(token: str) -> str:
    """Return what is stored. A slow hash protects passwords that people choose; nobody can guess 256 random bits."""
    return hashlib.sha256(token.encode()).hexdigest()


class TokenStore:
    """Makes, finds and removes tokens. Every method raises StoreUnavailable when MongoDB is away."""

    def __init__(self, database: Database[Document]) -> None:
        self._collection = database["apitokens"]
        self._quick = self._collection.with_options(write_concern=WriteConcern(w=1))

    def ensure_indexes(self) -> None:
        """Create the missing index."""
        with store_errors():
            self._collection.create_index([("hash", 1)], name="hash", unique=True)

    def add(self, company: ObjectId, name: str) -> tuple[ObjectId, str]:
        """Make a token; return its id, and the token, which cannot be read again."""
        token_id, token = ObjectId(), PREFIX + secrets.token_urlsafe(_BYTES)
        fields = {"_id": token_id, "company": company, "name": name, "hash": _hash(token), "created_at": now()}
        with store_errors():
            self._collection.insert_one(fields)
        return token_id, token

    def find_company(self, token: str) -> ObjectId | None:
        """Return whose token this is; None if it is none. Not cached, so that a removed token ends at once."""
        if not _TOKEN.fullmatch(token):
            return None
        with store_errors():
            found = self._collection.find_one({"hash": _hash(token)}, {"company": 1, "last_used_at": 1})
        company = None if found is None else found.get("company")
        if found is None or not isinstance(company, ObjectId):
            return None
        before, present = found.get("last_used_at"), now()
        if not isinstance(before, datetime) or before <= present - _USE_IS_NOTED_EVERY:
            # A read must not fail because the note of it cannot be written.
            with suppress(StoreUnavailable), store_errors():
                is_unchanged = {"_id": found["_id"], "last_used_at": before}
                self._quick.update_one(is_unchanged, {"$set": {"last_used_at": present}})
        return company

    def list_all(self, company: ObjectId | None) -> list[Document]:
        """Return the stored tokens of one company or all, without their hashes, the oldest first."""
        query = {} if company is None else {"company": company}
        with store_errors():
            return list(self._collection.find(query, {"hash": 0}).sort([("company", 1), ("_id", 1)]))

    def remove(self, token_id: ObjectId) -> bool:
        """Remove a token; return whether there was one."""
        with store_errors():
            return self._collection.delete_one({"_id": token_id}).deleted_count == 1
