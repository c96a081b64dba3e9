"""Install the bare package at both ends of its ranges, and beside another project's pins, and run `suite` in each.

A worker with today's packages takes what those producers send: versions meet in production as well. Needs `uv`, and an
index of packages; ends with the number of environments that failed.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pymongo
import uv
from bson import ObjectId

from tests.lab.receiver import Receiver
from tests.lab.samples_data import read_sample
from tests.lab.servers import Servers
from tests.lab.worker import Worker, environment, wait_until
from webhooks.models import COTWebhook

ROOT = Path(__file__).parents[2]
SUITE = Path(__file__).with_name("suite.py")

#: How each environment is installed, besides `pytest`. The third has what services held when this was written, of
#: packages that a worker wants newer.
ENVIRONMENTS: Mapping[str, list[str]] = {
    "lowest": ["--resolution", "lowest-direct"],
    "highest": ["--resolution", "highest", "django>=5.2,<6"],
    "pinned": [
        *("celery>=5.6,<5.7", "redis>=6.4,<6.5", "pydantic>=2.12,<2.13", "django>=5.2,<6"),
        *("requests==2.32.5", "urllib3>=2.6,<2.7", "cryptography>=46,<47", "rich>=14,<15"),
    ],
}
#: Events that `suite` sends with the mark, by whichever function.
SENT = {"delay", "apply_async", "many 0", "many 1", "accept", "on commit", "accept_async"}


def main() -> int:
    """Run all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        servers = Servers(folder / "servers")
        try:
            servers.start()
            return _run_all(folder, servers)
        finally:
            servers.discard()


def _run_all(folder: Path, servers: Servers) -> int:
    settings = {
        "WEBHOOKS_BROKER_URL": servers.valkey.url,
        "WEBHOOKS_MONGODB_URL": servers.mongod.url,
        "WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    worker = Worker(folder, settings)
    failed = []
    with Receiver() as receiver, pymongo.MongoClient(servers.mongod.url) as client:
        value = {**read_sample("webhook-task"), "_id": str(ObjectId()), "url": receiver.url, "context": {}}
        client["webhooks"]["webhooks"].insert_one(COTWebhook.model_validate(value).to_bson())
        worker.start()
        try:
            with ThreadPoolExecutor(len(ENVIRONMENTS)) as threads:
                for name, (is_good, text) in zip(
                    ENVIRONMENTS, threads.map(lambda name: _try(folder, name, settings), ENVIRONMENTS), strict=True
                ):
                    print(f"── {name}\n{text}")
                    failed += [] if is_good else [name]
            if not failed:
                wait_until(lambda: not _missing(receiver), f"delivered; the worker says {worker.log()[-3000:]}")
        finally:
            worker.kill()
    print(f"failed: {', '.join(failed)}" if failed else "a producer's installation works in all environments")
    return len(failed)


def _try(folder: Path, name: str, settings: Mapping[str, str]) -> tuple[bool, str]:
    started = time.monotonic()
    python = _install(folder / name, ENVIRONMENTS[name])
    installed = time.monotonic()
    done = _run_suite(python, folder, {**environment(), **settings, "MARK": name})
    times = f"installed in {installed - started:.0f} s, run in {time.monotonic() - installed:.0f} s"
    return done.returncode == 0, done.stdout + done.stderr + times


def _install(place: Path, wanted: list[str]) -> Path:
    tool = uv.find_uv_bin()
    subprocess.run([tool, "venv", "--quiet", "--python", sys.executable, place], check=True)
    python = place / "bin" / "python"
    packages = [str(ROOT), "pytest>=9.2,<10", *wanted]
    subprocess.run([tool, "pip", "install", "--quiet", "--python", python, *packages], check=True)
    return python


def _run_suite(python: Path, folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in env.items() if key != "PYTHONPATH"}
    # Without our configuration, conftest and checkout: the installed package is what is tested.
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "-c", os.devnull, "--noconftest"]
    argv = [python, "-P", "-m", "pytest", *options, "--import-mode=importlib", f"--rootdir={folder}", SUITE]
    return subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, check=False)


def _missing(receiver: Receiver) -> set[str]:
    """Return what they sent and no receiver got; what the lowest one lacks the packages for it did not send."""
    sent = {(name, what) for name in ENVIRONMENTS for what in SENT} - {
        ("lowest", "on commit"),
        ("lowest", "accept_async"),
    }
    bodies = b"".join(request.body for request in receiver.requests)
    return {f"{name} {what}" for name, what in sent if f'"x":"{name} {what}"'.encode() not in bodies}


if __name__ == "__main__":
    sys.exit(main())
