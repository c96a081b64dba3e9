"""``/api/v3/webhook/…``: the platform's read API, for programs of one company. `openapi.json` describes it.

A token, not Flower's login, says which company asks. Everything that belongs to another one is not found.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from bson import ObjectId
from tornado.routing import URLSpec
from tornado.web import HTTPError, url

from webhooks.errors import StoreUnavailable
from webhooks.models import format_instant, now
from webhooks.models.wire import document_json, show
from webhooks.rules.times import parse_time
from webhooks.store.log_filter import read_filter
from webhooks.store.logs import LogQuery, parse_log
from webhooks.store.mongo import Document
from webhooks.store.search import Cursor
from webhooks.store.stores import Stores
from webhooks.store.webhooks import for_company
from webhooks.web.base import ReadsStores
from webhooks.web.extension import FOLDER
from webhooks.web.filters import read_cursor, write_cursor

DEFAULT_LIMIT, MAX_LIMIT = 100, 500
#: Bytes at which an answer takes no further log: one has up to some hundred kilobytes.
MAX_BYTES = 4 * 1024 * 1024

_PARAMETERS = ("limit", "before", "status", "result", "since")
_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE | re.ASCII)
_LIMIT = re.compile(r"[0-9]{1,4}", re.ASCII)
_ID = "([0-9a-fA-F]{24})"
_METHODS = ("GET", "HEAD")
#: For clients: why MongoDB is away stands in Flower's log.
_AWAY = "the database does not answer; try again later"


class ApiError(HTTPError):
    """A request that is refused; its text is for the client."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(status)
        self.text = text


@dataclass(frozen=True, slots=True)
class LogRequest:
    """Which logs of a webhook a client asks for."""

    query: LogQuery
    limit: int = DEFAULT_LIMIT
    after: Cursor | None = None


class ApiHandler(ReadsStores):
    """Answers clients with a token, in JSON."""

    SUPPORTED_METHODS = _METHODS
    reads_as = "api"
    #: Which one asks; `prepare` sets it.
    company: ObjectId

    def set_default_headers(self) -> None:
        """Set what all answers have."""
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    async def prepare(self) -> None:
        """Find out which company asks."""
        given = _BEARER.fullmatch(self.request.headers.get("Authorization", "").strip())
        company = await self.read(self.stores.tokens.find_company, given[1]) if given else None
        if company is None:
            text = "the token is not valid" if given else "a token is missing: send Authorization: Bearer TOKEN"
            raise ApiError(HTTPStatus.UNAUTHORIZED, text)
        self.company = company

    async def head(self, *args: str) -> None:
        """Answer as to GET; Tornado leaves the body out."""
        await self.get(*args)

    async def get(self, *_: str) -> None:
        """Answer that there is nothing at this address."""
        raise ApiError(HTTPStatus.NOT_FOUND, "not found")

    def read_parameters(self, known: Sequence[str]) -> dict[str, str]:
        """Return the parameters of the URL.

        Raises:
            ApiError: one is not known, or cannot be read.
        """
        given: dict[str, str] = {}
        for name, values in self.request.query_arguments.items():
            if name not in known:
                takes = f"this address takes {', '.join(known)}" if known else "this address takes no parameters"
                raise _bad_parameter(name, f"is unknown; {takes}")
            if len(values) > 1:
                raise _bad_parameter(name, "is given more than once")
            try:
                given[name] = values[0].decode().strip()
            except UnicodeDecodeError:
                raise _bad_parameter(name, "is not UTF-8") from None
            if not given[name]:
                raise _bad_parameter(name, "is empty; leave it out")
        return given

    def compute_etag(self) -> None:
        """Send no tag: an answer is never stored."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with the reason."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        text = error.text if isinstance(error, ApiError) else HTTPStatus(status_code).phrase.lower()
        if isinstance(error, StoreUnavailable):
            self.set_status(HTTPStatus.SERVICE_UNAVAILABLE)
            text = _AWAY
        elif status_code == HTTPStatus.UNAUTHORIZED:
            invalid = ', error="invalid_token"' if "Authorization" in self.request.headers else ""
            self.set_header("WWW-Authenticate", f'Bearer realm="webhooks"{invalid}')
        elif status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.set_header("Allow", ", ".join(_METHODS))
        self.finish(json.dumps({"error": text}))


class WebhookListHandler(ApiHandler):
    """The webhooks of the company."""

    async def get(self, *_: str) -> None:
        """Answer with all of them, active or not."""
        self.read_parameters(())
        await self.finish(await self.read(list_webhooks, self.stores, self.company))


class WebhookHandler(ApiHandler):
    """One webhook."""

    async def get(self, *args: str) -> None:
        """Answer with it."""
        self.read_parameters(())
        found = await self.read(self.stores.webhooks.get_stored, ObjectId(args[0]), self.company)
        if found is None:
            raise _no_webhook()
        await self.finish(_write_webhook(found))


class LogListHandler(ApiHandler):
    """The logs of a webhook."""

    async def get(self, *args: str) -> None:
        """Answer with the newest, or with those before the ones that the client has."""
        given = self.read_parameters(_PARAMETERS)
        asked = read_log_request(ObjectId(args[0]), given, now())
        found = await self.read(read_logs, self.stores, self.company, asked)
        if found is None:
            raise _no_webhook()
        body, end = found
        if end is not None:
            since = {"since": format_instant(asked.query.since)} if asked.query.since else {}
            values = {**given, **since, "before": write_cursor(end)}
            # Without a path, as a proxy may have changed it.
            self.set_header("Link", f'<?{urlencode(values, safe=":~")}>; rel="next"')
        await self.finish(body)


class DescriptionHandler(ApiHandler):
    """What the API offers, in OpenAPI's form."""

    async def prepare(self) -> None:
        """Let everybody read it."""

    async def get(self, *_: str) -> None:
        """Answer with the file."""
        await self.finish(_read_description())


def list_webhooks(stores: Stores, company: ObjectId) -> bytes:
    """Return a company's webhooks as a JSON array."""
    return _write_array(map(_write_webhook, stores.webhooks.list_all(company)))


def read_logs(stores: Stores, company: ObjectId, asked: LogRequest) -> tuple[bytes, Cursor | None] | None:
    """Read logs of a webhook.

    Returns:
        A JSON array, and where the next page begins, None if this is the last; None if the company has no such webhook.
    """
    webhook_id = asked.query.webhook_id
    if webhook_id is None or stores.webhooks.get_stored(webhook_id, company) is None:
        return None
    texts: list[bytes] = []
    size = 0

    def take(document: Document) -> bool:
        nonlocal size
        log = parse_log(document)
        # Somebody may have moved the webhook to this company: what it got before is another's.
        if log is not None and log.company == company:
            texts.append(document_json(log.for_company()).encode())
            size += len(texts[-1])
        return size < MAX_BYTES

    end = stores.search.walk_whole(asked.query, asked.limit, asked.after, take)
    return _write_array(texts), end


def read_log_request(webhook_id: ObjectId, given: Mapping[str, str], present: datetime) -> LogRequest:
    """Read which logs a client asks for.

    Args:
        webhook_id: whose logs.
        given: parameters of the URL, by name.
        present: what "2h ago" counts from.

    Raises:
        ApiError: a parameter cannot be used; the text names it.
    """
    limit = given.get("limit", str(DEFAULT_LIMIT))
    if not _LIMIT.fullmatch(limit) or not 1 <= int(limit) <= MAX_LIMIT:
        raise _bad_parameter("limit", f"must be a number from 1 to {MAX_LIMIT}")
    asked = read_filter({name: given[name] for name in ("status", "result", "since") if name in given}, present)
    for name, reason in asked.errors.items():
        raise _bad_parameter(name, reason)
    query, before, after = replace(asked.query, webhook_id=webhook_id), given.get("before"), None
    if before is not None and "~" in before:
        after = read_cursor(before)
        if after is None:
            raise _bad_parameter("before", "must be a date, or what the header Link of the page before has")
    elif before is not None:
        try:
            query = replace(query, until=parse_time(before, present))
        except ValueError as error:
            raise _bad_parameter("before", str(error)) from None
    return LogRequest(query, int(limit), after)


def _bad_parameter(name: str, reason: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, f"{show(name)}: {reason}")


def _no_webhook() -> ApiError:
    return ApiError(HTTPStatus.NOT_FOUND, "there is no webhook with this id")


def _write_webhook(document: Document) -> bytes:
    return document_json(for_company(document)).encode()


def _write_array(items: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(items) + b"]"


@cache
def _read_description() -> bytes:
    return (FOLDER / "openapi.json").read_bytes()


_BASE = "/api/v3"
HANDLERS: list[URLSpec] = [
    url(rf"{_BASE}/openapi\.json", DescriptionHandler),
    url(f"{_BASE}/webhook/subscription", WebhookListHandler),
    url(f"{_BASE}/webhook/subscription/{_ID}", WebhookHandler),
    url(f"{_BASE}/webhook/subscription/logs/{_ID}", LogListHandler),
    # Malformed ids, too.
    url(f"{_BASE}(?:/.*)?", ApiHandler),
]
