"""Flower in a thread, as far as pages need it: no worker and no broker is asked for anything."""

import asyncio
import threading
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Self, cast

from celery.events.state import State
from flower import urls
from flower.app import Flower
from flower.options import default_options
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets

from webhooks.producer.app import app
from webhooks.web.base import get_stores
from webhooks.web.extension import install
from webhooks.web.figures import get_figures
from webhooks.web.metrics import get_reader, replace_metrics
from webhooks.web.pages import HANDLERS

#: Seconds for an answer, on a machine that runs other things beside.
TIMEOUT_S = 60.0


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Any
    body: bytes
    url: str

    @property
    def text(self) -> str:
        return self.body.decode()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass
class FlowerThread:
    """A running Flower; use it as a context."""

    options: dict[str, Any] = field(default_factory=dict)
    port: int = 0
    #: What Flower has seen of tasks.
    state: State = field(default_factory=State)

    def __post_init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._run)
        self._started = threading.Event()

    def __enter__(self) -> Self:
        self._handlers = list(urls.handlers)
        install(HANDLERS)
        replace_metrics()
        self._before = {name: getattr(default_options, name) for name in self.options}
        for name, value in self.options.items():
            setattr(default_options, name, value)
        self._thread.start()
        if not self._started.wait(TIMEOUT_S):
            raise TimeoutError("Flower does not start")
        return self

    def _run(self) -> None:
        async def serve() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            events = cast("Any", SimpleNamespace(state=self.state))
            loop = IOLoop.current()
            flower = Flower(capp=app, options=default_options, events=events, io_loop=loop, **urls.settings)
            sockets = bind_sockets(0, "127.0.0.1")
            self.port = sockets[0].getsockname()[1]
            server = HTTPServer(flower)
            server.add_sockets(sockets)
            self._started.set()
            await self._stop.wait()
            server.stop()
            await server.close_all_connections()
            flower.executor.shutdown()

        asyncio.run(serve())

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(TIMEOUT_S)
        urls.handlers[:] = self._handlers
        for name, value in self._before.items():
            setattr(default_options, name, value)
        if get_stores.cache_info().currsize:
            get_stores().close()
            get_stores.cache_clear()
            get_figures.cache_clear()
            get_reader.cache_clear()

    def url(self, path: str) -> str:
        """Return the address of a page."""
        return f"http://127.0.0.1:{self.port}{path}"

    def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
        """Ask for a page; redirects are not followed."""
        return self._ask(urllib.request.Request(self.url(path), headers=headers or {}, method=method))

    def post(self, path: str, values: dict[str, str], headers: dict[str, str] | None = None) -> Answer:
        """Send a form."""
        data = urllib.parse.urlencode(values).encode()
        return self._ask(urllib.request.Request(self.url(path), data=data, headers=headers or {}))

    def _ask(self, request: urllib.request.Request) -> Answer:
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                return Answer(answer.status, answer.headers, answer.read(), answer.url)
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read(), error.url or "")
