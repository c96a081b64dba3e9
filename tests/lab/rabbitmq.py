"""A RabbitMQ of one's own on loopback. The one server that no wheel has: Debian's ``rabbitmq-server``."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kombu.connection import Connection

from tests.lab.worker import wait_until
from webhooks.local.processes import kill_group, spawn
from webhooks.local.servers import free_port


def find_rabbitmq() -> Path | None:
    """Return the server; None where it is not installed.

    Debian's wrapper around it gives up root, and then cannot write into a test's folder.
    """
    found = next(Path("/usr/lib/rabbitmq/lib").glob("*/sbin/rabbitmq-server"), None)
    wrapper = shutil.which("rabbitmq-server")
    return found or (Path(wrapper) if wrapper else None)


@contextmanager
def run_rabbitmq(server: Path, folder: Path) -> Iterator[str]:
    """Run a RabbitMQ while the context lasts; yields its URL.

    Args:
        server: from `find_rabbitmq`.
        folder: for its data.
    """
    port = free_port()
    (folder / "enabled_plugins").write_text("[].")
    env = {
        **os.environ,
        "HOME": str(folder),
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
    }
    with (folder / "output").open("wb") as output:
        process = spawn([str(server)], env=env, stdout=output)
    url = f"amqp://guest:guest@127.0.0.1:{port}//"

    def is_up() -> bool:
        assert process.poll() is None, (folder / "output").read_text()
        try:
            with Connection(url, connect_timeout=2) as connection:
                connection.connect()
        except OSError:
            return False
        return True

    try:
        wait_until(is_up, "RabbitMQ up", 90)
        yield url
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        kill_group(process)
        process.wait()
