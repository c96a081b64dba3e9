"""What our pages in Flower have in common: Flower's login and look, a strict policy, MongoDB read beside the loop."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NoReturn, ParamSpec, TypeVar

import pymongo
from bson import ObjectId
from flower.urls import settings as flower_settings
from flower.views import BaseHandler
from tornado.template import BaseLoader, Loader
from tornado.web import HTTPError, RequestHandler

from webhooks.config import get_settings
from webhooks.errors import StoreUnavailable
from webhooks.store.actions import OperatorAction
from webhooks.store.stores import Stores
from webhooks.web import show
from webhooks.web.extension import FOLDER, page_path, static_path

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_TEMPLATES = FOLDER / "templates"
#: Reads of MongoDB at one time, of the pages and of the read API. Those beyond wait for one of them.
_READS_AT_ONCE = 8
#: Seconds that one page may wait for MongoDB: people give up sooner than workers.
_READ_S = 10.0
#: Nothing but files of Flower's and ours runs or is drawn; bootstrap.min.css has its icons in itself.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@cache
def _executor(who: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix=f"webhooks-{who}")


@cache
def get_stores() -> Stores:
    """Open this process's stores; no connection is made before something is read."""
    return Stores()


async def call_in_thread(function: Callable[[], _T], timeout_s: float, who: str = "web") -> _T:
    """Call what uses MongoDB in a thread.

    Args:
        function: what to call.
        timeout_s: how long it may take.
        who: whose threads; the read API's many clients must not keep people from the pages.

    Raises:
        StoreUnavailable: MongoDB did not answer in time.
    """

    def call() -> _T:
        with pymongo.timeout(timeout_s):
            return function()

    return await asyncio.get_running_loop().run_in_executor(_executor(who), call)


class ReadsStores(RequestHandler):
    """What reads MongoDB beside the loop, and answers when it is away."""

    #: Whose threads it reads in.
    reads_as = "web"

    @property
    def stores(self) -> Stores:
        """Where everything is read from, by way of `read` alone."""
        return get_stores()

    async def read(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call what reads MongoDB in a thread, as Flower's loop must go on meanwhile.

        Raises:
            StoreUnavailable: MongoDB did not answer in time.
        """
        timeout_s = min(_READ_S, get_settings().mongodb_timeout_s)
        return await call_in_thread(partial(function, *args, **kwargs), timeout_s, self.reads_as)

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Log what is a defect; MongoDB being away is one line."""
        if isinstance(value, StoreUnavailable):
            logger.warning("%s %s: %s", self.request.method, self.request.path, value)
            return
        super().log_exception(typ, value, tb)


class _PageLoader(Loader):
    """Finds our templates in our folder, and those that they extend in Flower's."""

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        return name

    def _create_template(self, name: str) -> Any:
        self.root = str(_TEMPLATES) if (_TEMPLATES / name).exists() else str(flower_settings["template_path"])
        return super()._create_template(name)


class RefusedError(HTTPError):
    """A request that gets a page with words for an answer."""

    def __init__(self, status: int, title: str, text: str) -> None:
        super().__init__(status)
        self.title = title
        self.text = text


class PageHandler(ReadsStores, BaseHandler):
    """A page of ours. Every method that answers a request has to be `tornado.web.authenticated`."""

    def set_default_headers(self) -> None:
        """Set Flower's headers, and what makes producers' and receivers' texts harmless."""
        super().set_default_headers()
        # Flower lets other sites read all its pages where FLOWER_UNAUTHENTICATED_API is set.
        self.clear_header("Access-Control-Allow-Origin")
        self.set_header("Content-Security-Policy", _CONTENT_SECURITY_POLICY)
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    def get_template_path(self) -> str:
        """Return what keys Tornado's cache of loaders."""
        return str(_TEMPLATES)

    def create_template_loader(self, template_path: str) -> BaseLoader:
        """Return a loader of our templates and Flower's."""
        return _PageLoader(template_path)

    @property
    def is_read_only(self) -> bool:
        """Whether nobody may act here."""
        return bool(get_settings().web_readonly or self.application.options.read_only)  # pyright: ignore[reportAttributeAccessIssue]

    async def find_done(self) -> OperatorAction | None:
        """Return the action that the page before has just done; None where it did none."""
        action_id = self.argument("done")
        return await self.read(self.stores.actions.get, ObjectId(action_id)) if ObjectId.is_valid(action_id) else None

    def show(self, template: str, **values: Any) -> None:
        """Send a page."""
        self.render(
            template,
            show=show,
            here=partial(page_path, self),
            own_file=lambda name: static_path(self, name),
            is_read_only=self.is_read_only,
            **values,
        )

    def not_found(self, title: str, text: str) -> NoReturn:
        """Answer that there is nothing of the kind.

        Args:
            title: what is not there.
            text: what that may mean.
        """
        raise RefusedError(404, title, text)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Say in words that MongoDB is away; all else as Flower does."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, StoreUnavailable):
            self.set_status(503)
            self.show("webhook_error.html", title="MongoDB does not answer", text=str(error))
            return
        if isinstance(error, RefusedError):
            self.show("webhook_error.html", title=error.title, text=error.text)
            return
        super().write_error(status_code, **kwargs)

    def argument(self, name: str) -> str:
        """Return an argument of the URL as it was given; empty where there is none."""
        return self.get_query_argument(name, "") or ""

    @property
    def who(self) -> str:
        """The name by which Flower knows who is here; empty where Flower asks for no login."""
        user = self.current_user
        if isinstance(user, str):
            return user
        return show.read_basic_user(self.request.headers.get("Authorization", ""))
