"""Our pages and their addresses."""

from tornado.routing import URLSpec
from tornado.web import url

from webhooks.web.logs_page import FindHandler, LogsHandler

_ID = r"([^/]+)"

#: The first that fits is taken.
HANDLERS: list[URLSpec] = [
    url(r"/webhooks/logs", LogsHandler, name="webhooks_logs"),
    url(r"/webhooks/find", FindHandler, name="webhooks_find"),
    url(rf"/webhooks/deliveries/{_ID}", LogsHandler, name="webhook_delivery"),
    url(rf"/webhooks/events/{_ID}", LogsHandler, name="webhook_event"),
    url(r"/webhooks", LogsHandler, name="webhooks"),
    url(rf"/webhooks/{_ID}", LogsHandler, name="webhook"),
]
