"""Adds our pages to Flower: handlers, a tab in its navigation, and links on its task page.

Flower has no plug-ins. Two things that Tornado offers every application are set before Flower makes its own: the list
of handlers, and ``ui_modules``, whose ``Template`` draws Flower's navigation. No template of Flower is copied. If a new
Flower draws its navigation in another way, its pages stay as they are and ours keep their addresses.
"""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flower import urls
from flower.views.tasks import TaskView
from tornado.escape import xhtml_escape
from tornado.routing import URLSpec
from tornado.web import RequestHandler, StaticFileHandler, TemplateModule, url

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
_NAVIGATION = "navbar.html"
#: Ends Flower's list of tabs, which is the first list of its navigation.
_END_OF_TABS = b"</ul>"
#: Stands for a slash in an id while an address is made: of Unicode's private characters, which no id has.
_SLASH = "\ue02f"


class NavigationModule(TemplateModule):
    """Flower's ``{% module Template(…) %}``, with our tab in its navigation."""

    def render(self, path: str, **kwargs: Any) -> bytes:
        """Return what the template gives, with the tab where it is the navigation."""
        html = super().render(path, **kwargs)
        if path != _NAVIGATION:
            return html
        before, end, after = html.partition(_END_OF_TABS)
        if not end:
            return html
        tab = _draw_tab(self.handler, is_active=kwargs.get("active_tab") == "webhooks")
        links = _draw_task_links(self.handler)
        return before + tab.encode() + end + after + links.encode()

    def css_files(self) -> Iterable[str]:
        """Return Flower's own, and ours."""
        return [*super().css_files(), static_path(self.handler, "webhooks.css")]


def _draw_tab(handler: RequestHandler, *, is_active: bool) -> str:
    address = xhtml_escape(handler.reverse_url("webhooks"))
    state = ' active" aria-current="page' if is_active else ""
    return f'<li class="nav-item"><a class="nav-link{state}" href="{address}">Webhooks</a></li>'


def _draw_task_links(handler: RequestHandler) -> str:
    """Return a line for Flower's page of one task: where the webhook's side of it is.

    Also where Flower has forgotten the task: the logs have not.
    """
    if not isinstance(handler, TaskView) or not handler.path_args or not handler.path_args[0]:
        return ""
    task_id = handler.path_args[0]
    task = handler.application.events.state.tasks.get(task_id)  # pyright: ignore[reportAttributeAccessIssue]
    name = getattr(task, "name", None)
    if task is not None and name not in ("webhooks.deliver", "webhooks.send"):
        return ""
    is_delivery = name == "webhooks.send" or task_id.startswith("msg_")
    where, text = ("webhook_delivery", "this delivery") if is_delivery else ("webhook_event", "this event")
    address = xhtml_escape(page_path(handler, where, task_id))
    return f'<p class="wh-task-links">Webhooks: <a href="{address}">what became of {text}</a></p>'


def page_path(handler: RequestHandler, name: str, *ids: object) -> str:
    """Return the address of a page. Tornado leaves slashes in ids as they are, and producers choose events' ids."""
    given = [str(one).replace("/", _SLASH) for one in ids]
    return handler.reverse_url(name, *given).replace(quote(_SLASH), "%2F")


def static_path(handler: RequestHandler, name: str) -> str:
    """Return the address of one of our files, which changes with its content."""
    return f"{handler.reverse_url('webhooks_static', name)}?v={_digest(name)}"


@cache
def _digest(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def install(handlers: Iterable[URLSpec]) -> None:
    """Add pages and tab; before Flower makes its application.

    Args:
        handlers: of our pages.
    """
    files = url(r"/webhooks/static/([^/]+)", StaticFileHandler, {"path": str(STATIC)}, name="webhooks_static")
    # Before Flower's last handler, which takes every address that nobody has taken.
    urls.handlers[-1:-1] = [files, *handlers]
    urls.settings["ui_modules"] = {"Template": NavigationModule}
