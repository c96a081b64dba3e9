"""The HTTP port of a worker: ``/metrics`` for Prometheus, ``/live`` and ``/ready`` for probes.

Probes ask no server: a worker must not be restarted because Redis or MongoDB is away.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from socketserver import TCPServer
from typing import Any, cast

from celery.signals import celeryd_after_setup, worker_ready

from webhooks.config import get_settings
from webhooks.delivery.meters import meters
from webhooks.delivery.services import get_services
from webhooks.delivery.stopping import stopping
from webhooks.errors import trace
from webhooks.metrics.system import SystemReader
from webhooks.producer.app import app
from webhooks.version import __version__
from webhooks.worker.pool import BatchPool
from webhooks.worker.renewal import renewals

logger = logging.getLogger(__name__)

#: Seconds that a client may take to send its request, and clients at one time; beyond, connections are closed.
_REQUEST_S = 5.0
_MOST_CLIENTS = 16

#: An answer: status, content type and body.
Answer = tuple[HTTPStatus, str, bytes]


@dataclass(eq=False)
class Probe:
    """The state of one worker."""

    #: Celery's worker.
    worker: Any
    #: Whether it has begun to take messages.
    has_started: bool = False

    @property
    def pool(self) -> Any:
        """Celery's pool; None before it is made."""
        return getattr(self.worker, "pool", None)

    def find_deadlocks(self) -> list[str]:
        """Return why only a restart helps; empty if none is needed."""
        dead = self.pool.find_dead_threads() if isinstance(self.pool, BatchPool) else ()
        return [f"the thread {name} has ended" for name in dead]

    def find_obstacles(self) -> list[str]:
        """Return why it cannot deliver now; empty if it can."""
        found = self.find_deadlocks()
        if stopping.is_set():
            found.append("it is stopping")
        elif not self.has_started:
            found.append("it has not taken messages yet: the broker may be away")
        found += [f"its lease in {one.name} is not renewed" for one in renewals if not one.is_good]
        return found


class Pages:
    """Answers requests."""

    def __init__(self, probe: Probe) -> None:
        # Takes a tenth of a second, which only workers with a port need.
        self._families: Any = import_module("webhooks.metrics.families")
        self._exposition: Any = import_module("prometheus_client.exposition")
        self._probe = probe
        self._system = SystemReader(get_services().overview)
        self._registry = self._families.make_registry(self._collect)
        import_module("prometheus_client").ProcessCollector(registry=self._registry)

    def answer(self, path: str, accept: str) -> Answer:
        """Answer a request.

        Args:
            path: of the URL.
            accept: the formats that the client understands.
        """
        if path == "/metrics":
            encode, content_type = self._exposition.choose_encoder(accept)
            return HTTPStatus.OK, content_type, encode(self._registry)
        if path == "/live":
            return _probe_answer(self._probe.find_deadlocks())
        if path == "/ready":
            return _probe_answer(self._probe.find_obstacles())
        return HTTPStatus.NOT_FOUND, "text/plain", b"there are /metrics, /live and /ready\n"

    def _collect(self) -> Iterable[Any]:
        pool, state = self._probe.pool, self._families.WorkerState
        in_flight, limit = (pool.in_flight, pool.limit) if isinstance(pool, BatchPool) else (None, 1)
        told = state(self._probe.worker.hostname, not self._probe.find_obstacles(), in_flight, limit)
        yield from self._families.worker_families(meters, told)
        yield from self._families.system_families(self._system.read(meters.busiest.lanes))


def _probe_answer(faults: list[str]) -> Answer:
    status = HTTPStatus.SERVICE_UNAVAILABLE if faults else HTTPStatus.OK
    return status, "text/plain", ("\n".join(faults or ["ok"]) + "\n").encode()


class _Handler(BaseHTTPRequestHandler):
    timeout = _REQUEST_S

    def do_GET(self) -> None:
        answer = cast("MetricsServer", self.server).answer
        try:
            status, content_type, body = answer(self.path.partition("?")[0], self.headers.get("Accept", ""))
        except Exception as error:  # noqa: BLE001 - its text may hold payload
            logger.error("metrics cannot be made: %s", trace(error))  # noqa: TRY400
            status, content_type, body = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", b"see the worker's log\n"
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return f"webhooks/{__version__}"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Log nothing: probes would fill the log."""


class MetricsServer(ThreadingHTTPServer):
    """Serves the pages in threads of its own."""

    daemon_threads = True
    #: Another worker's port is not to be shared.
    allow_reuse_port = False

    def __init__(self, address: str, port: int, answer: Callable[[str, str], Answer]) -> None:
        """Listen; raises OSError where that is not possible."""
        self.address_family = AF_INET6 if ip_address(address).version == 6 else AF_INET
        self.answer = answer
        self._clients = threading.BoundedSemaphore(_MOST_CLIENTS)
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        """Bind without looking up the host's name, which would wait for a name server that is away."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a client, unless there are too many."""
        if self._clients.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a client in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._clients.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client has closed its connection."""


def serve(address: str, ports: Iterable[int], answer: Callable[[str, str], Answer]) -> MetricsServer | None:
    """Serve at the first port that is free; None, and one line in the log, where none is."""
    reasons = []
    for port in sorted(ports):
        try:
            server = MetricsServer(address, port, answer)
        except OSError as error:
            reasons.append(f"{port}: {error.strerror}")
            continue
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        logger.info("metrics and probes are served at %s port %d", address, port)
        return server
    logger.error(
        "metrics and probes are not served at %s, %s: free a port, or give WEBHOOKS_METRICS_PORT as many as this "
        "machine has workers, such as 9464-9471",
        *(address, ", ".join(reasons)),
    )
    return None


@celeryd_after_setup.connect
def _start(instance: Any, **_: object) -> None:
    settings = get_settings()
    if instance.app is not app or settings.metrics_port is None:
        return
    probe = Probe(instance)
    meters.is_on = serve(settings.metrics_address, settings.metrics_port, Pages(probe).answer) is not None

    def note_start(**_: object) -> None:
        probe.has_started = True

    worker_ready.connect(note_start, weak=False)
