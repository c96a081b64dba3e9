"""A small HTTP server on loopback that receives deliveries, for people who try things out."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Bytes of a body: more than an event can have.
_MAX_BODY = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Received:
    """A request."""

    path: str
    #: Names in small letters.
    headers: Mapping[str, str]
    body: bytes
    #: How many requests with this ``webhook-id`` came so far, with this one.
    number: int

    @property
    def delivery_id(self) -> str:
        """The request's ``webhook-id``; empty if it has none."""
        return self.headers.get("webhook-id", "")


@contextmanager
def run_receiver(
    answer: Callable[[Received], tuple[int, bytes]], notify: Callable[[Received, int], None], port: int = 0
) -> Iterator[int]:
    """Run a receiver, and yield its port.

    Args:
        answer: returns status and body of the response.
        notify: gets each request and the status that answered it, after the answer.
        port: 0: a free one.

    Both are called from several threads.

    Raises:
        OSError: the port cannot be used.
    """
    tries: Counter[str] = Counter()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet
        timeout = 60

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "0")
            if not length.isdecimal() or int(length) > _MAX_BODY:
                self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                return
            body = self.rfile.read(int(length))
            headers = {name.lower(): value for name, value in self.headers.items()}
            with lock:
                tries[headers.get("webhook-id", "")] += 1
                number = tries[headers.get("webhook-id", "")]
            received = Received(self.path, headers, body, number)
            status, text = answer(received)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            notify(received, status)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass  # `notify` gets it

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
