"""Our pages, the read API, and their addresses."""

from tornado.routing import URLSpec
from tornado.web import url

from webhooks.web import api
from webhooks.web.actions import DeliveryActionHandler, WebhookActionHandler
from webhooks.web.delivery_page import BodyHandler, DeliveryHandler
from webhooks.web.event_page import EventHandler
from webhooks.web.logs_page import FindHandler, LogsHandler
from webhooks.web.webhook_page import WebhookHandler
from webhooks.web.webhooks_page import WebhooksHandler

_ID = r"([^/]+)"

#: The first that fits is taken.
HANDLERS: list[URLSpec] = [
    url(r"/webhooks/logs", LogsHandler, name="webhooks_logs"),
    url(r"/webhooks/find", FindHandler, name="webhooks_find"),
    url(rf"/webhooks/deliveries/{_ID}", DeliveryHandler, name="webhook_delivery"),
    url(rf"/webhooks/deliveries/{_ID}/body", BodyHandler, name="webhook_delivery_body"),
    url(rf"/webhooks/deliveries/{_ID}/actions/{_ID}", DeliveryActionHandler, name="webhook_delivery_action"),
    url(rf"/webhooks/events/{_ID}", EventHandler, name="webhook_event"),
    url(r"/webhooks", WebhooksHandler, name="webhooks"),
    url(rf"/webhooks/{_ID}", WebhookHandler, name="webhook"),
    url(rf"/webhooks/{_ID}/actions/{_ID}", WebhookActionHandler, name="webhook_action"),
    *api.HANDLERS,
]
