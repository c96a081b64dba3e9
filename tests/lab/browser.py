"""Chromium without a window, driven by its DevTools protocol: for pages as people see them.

python -m tests.lab.browser URL FILE.png [WIDTH] [HEIGHT] [dark]
"""

import asyncio
import base64
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

#: Seconds for Chromium to start or answer, on a machine that runs other things beside.
TIMEOUT_S = 60.0
#: A screenshot comes as one message.
_MAX_MESSAGE = 100_000_000


def find_chromium() -> str | None:
    """Return Chromium's path; None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tab:
    """One page."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self._connection = connection
        self._numbers = count(1)
        #: What the page's console, its scripts and its policy complained of.
        self.complaints: list[str] = []
        self._events: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._numbers)
        await self._connection.write_message(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = await self._next()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    async def _next(self) -> dict[str, Any]:
        text = await asyncio.wait_for(self._connection.read_message(), TIMEOUT_S)
        message = json.loads(text or "{}")
        method, parameters = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(parameters["entry"]["text"])
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"])[:500])
        return message

    async def look(self, width: int, height: int = 900, *, is_dark: bool = False) -> None:
        """Have the window be of some size, and people prefer dark pages or light ones."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def open(self, url: str) -> None:
        """Go to an address, and wait until the page is loaded."""
        await self._loading(self.call("Page.navigate", url=url))

    async def _loading(self, action: Any) -> None:
        self._events.clear()
        await action
        while "Page.loadEventFired" not in self._events:
            await self._next()

    async def click(self, selector: str) -> None:
        """Click on what leads to another page, and wait until that is loaded."""
        await self._loading(self.run(f"document.querySelector({json.dumps(selector)}).click()"))

    async def run(self, script: str) -> Any:
        """Run a script in the page, and return what it gives."""
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    async def wait_for(self, condition: str) -> None:
        """Wait until a script gives something true."""
        async with asyncio.timeout(TIMEOUT_S):
            while not await self.run(condition):
                await asyncio.sleep(0.1)

    async def shoot(self, path: Path) -> None:
        """Take a picture of what the window shows."""
        path.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"]))


@asynccontextmanager
async def open_tab(chromium: str) -> AsyncIterator[Tab]:
    """Start Chromium with one empty page; it ends with the context."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                *(chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = await _wait_for_port(Path(folder) / "DevToolsActivePort", process)
            pages = json.loads((await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json/list")).body)
            address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            connection = await websocket_connect(address, max_message_size=_MAX_MESSAGE)
            tab = Tab(connection)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await tab.call(f"{domain}.enable")
            yield tab
            connection.close()
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)


async def _wait_for_port(path: Path, process: subprocess.Popen[bytes]) -> int:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            if process.poll() is not None:
                raise RuntimeError("Chromium does not start")
            if path.exists() and (lines := path.read_text().split()):
                return int(lines[0])
            await asyncio.sleep(0.05)


async def _main(url: str, path: Path, width: int, height: int, *, is_dark: bool) -> None:
    async with open_tab(find_chromium() or "chromium") as tab:
        await tab.look(width, height, is_dark=is_dark)
        await tab.open(url)
        await tab.shoot(path)
        print(await tab.run("document.documentElement.scrollWidth"), *tab.complaints, sep="\n")


if __name__ == "__main__":
    sizes = [int(one) for one in sys.argv[3:] if one.isdecimal()]
    asyncio.run(
        _main(sys.argv[1], Path(sys.argv[2]), *[*sizes, *(1280, 900)[len(sizes) :]], is_dark="dark" in sys.argv)
    )
