"""Real servers that a test starts, stops, kills and pauses: for outages, and once per session for everybody."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from webhooks.local import servers
from webhooks.local.processes import kill_group, last_lines, spawn

#: Seconds for a server to answer, or to end, on a machine that runs other things beside.
TIMEOUT_S = 60.0


class Server:
    """One server on a port of its own. Its data stays in its folder from one start to the next."""

    def __init__(self, name: str, command: Callable[[int, Path], list[str]], url: Callable[[int], str], folder: Path):
        self.port = servers.free_port()
        self.url = url(self.port)
        self._data_dir = folder / name
        self._data_dir.mkdir(parents=True)
        self._copy_dir = folder / f"{name}-copy"
        self._log_path = folder / f"{name}.log"
        self._command = command(self.port, self._data_dir)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers; no effect while it runs."""
        if self.is_running():
            return
        with self._log_path.open("ab") as log:
            process = self._process = spawn(self._command, env=os.environ, stdout=log)
        try:
            servers.wait_until_answers(
                self.url,
                TIMEOUT_S,
                is_running=lambda: process.poll() is None,
                output=lambda: last_lines(self._log_path),
            )
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask it to end, as an operator does, and wait; no effect while it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does; no effect while it does not run."""
        self._end(signal.SIGKILL)

    def discard(self) -> None:
        """Kill it and delete its data, of which a MongoDB has 300 MB from its first second on."""
        self.kill()
        shutil.rmtree(self._data_dir)

    def keep_copy(self) -> None:
        """Keep a copy of its data as they are, while it does not run."""
        shutil.copytree(self._data_dir, self._copy_dir)

    def put_back_copy(self) -> None:
        """Put the copy in the place of its data, while it does not run."""
        shutil.rmtree(self._data_dir)
        shutil.copytree(self._copy_dir, self._data_dir)

    def pause(self) -> None:
        """Let it hang: connections stay open, and new ones are made, but nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def is_running(self) -> bool:
        """Say whether it lives; a paused one does."""
        return self._process is not None and self._process.poll() is None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("the server does not run")
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # a paused one would not notice SIGTERM
        try:
            process.wait(TIMEOUT_S)
        finally:
            kill_group(process)
            process.wait()


class Servers:
    """A Valkey and a MongoDB, made but not yet started."""

    def __init__(self, folder: Path):
        self.valkey = Server("valkey", servers.valkey_command, servers.valkey_url, folder)
        self.mongod = Server("mongod", servers.mongod_command, servers.mongodb_url, folder)

    def start(self) -> None:
        """Start both."""
        self.valkey.start()
        self.mongod.start()

    def discard(self) -> None:
        """Kill both, whatever state a test left them in, and delete their data."""
        self.valkey.discard()
        self.mongod.discard()
