"""Flower's ``/metrics`` with the metrics of the system after Flower's own."""

import asyncio
from functools import cache

from flower import urls
from flower.views.monitor import Metrics
from prometheus_client import generate_latest
from tornado.web import url

from webhooks.metrics.families import make_registry, system_families
from webhooks.metrics.system import SystemReader
from webhooks.web.base import get_stores


@cache
def get_reader() -> SystemReader:
    """Return what this process asks the servers with."""
    return SystemReader(get_stores().overview)


class MetricsHandler(Metrics):
    """As Flower's, open to everyone who reaches the port."""

    async def get(self) -> None:
        """Send both."""
        await super().get()
        reader = get_reader()  # here, as stores are opened by Flower's loop alone
        registry = make_registry(lambda: system_families(reader.read()))
        self.write(await asyncio.get_running_loop().run_in_executor(None, generate_latest, registry))


def replace_metrics() -> None:
    """Answer before Flower's own handler; before Flower makes its application."""
    urls.handlers.insert(0, url("/metrics", MetricsHandler))
