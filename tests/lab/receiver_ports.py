"""A suite's receiver in its own process, for the tests of the receiver itself."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

from tests.lab.quick_http import command
from webhooks.local.processes import kill_group, spawn

_ROOT = Path(__file__).parents[2]


class ReceiverPorts:
    """Where it takes requests and commands."""

    def __init__(self, port: int, control_port: int) -> None:
        self.port = port
        self._control_port = control_port

    @classmethod
    @contextmanager
    def running(cls, module: str) -> Iterator[Self]:
        """Run the receiver of a module."""
        process = spawn([sys.executable, "-m", module], env={}, cwd=_ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            yield cls(*json.loads(process.stdout.readline()))
        finally:
            kill_group(process)
            process.wait()
            process.stdout.close()

    def command(self, order: Any) -> Any:
        """Send a command; return its answer."""
        return command(self._control_port, order)

    def post(self, path: str, *numbers: int, data: dict[str, Any] | None = None) -> list[int]:
        """Post on one connection; return the statuses."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        found = []
        try:
            for number in numbers:
                body = json.dumps({"data": {"number": number, **(data or {})}}, separators=(",", ":"))
                connection.request("POST", path, body, {"webhook-id": f"msg_{number}"})
                response = connection.getresponse()
                response.read()
                found.append(response.status)
        finally:
            connection.close()
        return found

    def begin(self, path: str) -> socket.socket:
        """Send a request without waiting for its answer."""
        link = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        link.sendall(f'POST {path} HTTP/1.1\r\nwebhook-id: m\r\nContent-Length: 10\r\n\r\n"number":1'.encode())
        return link
