"""The demo's receiver: a small HTTP server on loopback that refuses some events twice."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Path at which it answers each delivery `REFUSALS` times with 503, then with 200.
FLAKY_PATH = "/notes"
REFUSALS = 2


@contextmanager
def run_receiver(notify: Callable[[str], None]) -> Iterator[int]:
    """Run a receiver on a free port, and yield the port.

    Args:
        notify: gets a line for each request; called from other threads.
    """
    tries: Counter[str] = Counter()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet
        timeout = 60

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            delivery_id = self.headers.get("webhook-id", "")
            with lock:
                tries[delivery_id] += 1
                is_refused = self.path == FLAKY_PATH and tries[delivery_id] <= REFUSALS
            status, answer = (503, b"busy, come back later") if is_refused else (200, b"thank you")
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
            notify(f"POST {self.path}  {len(body)} bytes  webhook-id {delivery_id}  → {status}")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass  # `notify` gets it

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
