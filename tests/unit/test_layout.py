"""The import rule: a module imports only from lower layers; and importing opens no connection."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import webhooks

PACKAGE = Path(webhooks.__file__).parent

#: Each module's layer. Within a layer nothing is imported, but for the pairs below.
LAYERS = {
    "errors": 0,
    "headers": 0,
    "broker_url": 0,
    "mongodb_url": 0,
    "holder": 0,
    "config": 0,
    "models": 0,
    "target": 0,
    "version": 0,
    "matching": 1,
    "retry": 1,
    "health": 1,
    "guard": 1,
    "signing": 1,
    "vault": 1,
    "durable": 1,
    "extras": 1,
    "stopping": 1,
    "celery_commands": 1,
    "digest": 1,
    "hints": 1,
    "remedies": 1,
    "environment": 2,
    "mongo": 2,
    "sender": 2,
    "webhookstore": 2,
    "logstore": 2,
    "lanes": 2,
    "ledger": 2,
    "leases": 2,
    "owed": 2,
    "gates": 2,
    "kept": 2,
    "outbox": 2,
    "deadletters": 2,
    "embedded": 2,
    "supervisor": 2,
    "transport": 2,
    "delivery": 3,
    "eager": 3,
    "flower_queues": 3,
    "operators": 3,
    "skipping": 3,
    "books": 3,
    "outcomes": 3,
    "app": 4,
    "services": 4,
    "batch": 6,
    "publishing": 5,
    "renewal": 5,
    "startup": 5,
    "producer": 6,
    "holding": 5,
    "queueing": 6,
    "testing": 7,
    "inplace": 7,
    "accepting": 7,
    "recording": 7,
    "claiming": 8,
    "sweeper": 8,
    "steward": 9,
    "pool": 9,
    "tasks": 9,
    "bindings": 5,
    "inspection": 5,
    "startup_errors": 5,
    "worker": 10,
    "up": 10,
    "demo": 11,
    "bench": 11,
    "cli": 12,
    "__main__": 13,
}
WITHIN_A_LAYER = {
    ("broker_url", "errors"),
    ("mongodb_url", "errors"),
    ("config", "broker_url"),
    ("config", "errors"),
    ("config", "mongodb_url"),
    ("config", "target"),
    ("models", "errors"),
    ("models", "target"),
    ("target", "errors"),
    ("webhookstore", "mongo"),
    ("logstore", "mongo"),
    ("ledger", "mongo"),
    ("gates", "mongo"),
    ("kept", "ledger"),
    ("kept", "mongo"),
    ("outbox", "mongo"),
    ("leases", "mongo"),
    ("owed", "mongo"),
    ("owed", "lanes"),
    ("ledger", "leases"),
    ("ledger", "owed"),
    ("ledger", "lanes"),
    ("skipping", "delivery"),
    ("deadletters", "mongo"),
    ("deadletters", "transport"),
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_by(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("webhooks."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("webhooks.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_lower_layers(path: Path):
    module = module_of(path)
    for other in imported_by(path) - {module}:
        assert LAYERS[other] < LAYERS[module] or (module, other) in WITHIN_A_LAYER, f"{module} imports {other}"


def test_importing_opens_no_connection_and_leaves_the_producers_app_alone():
    code = """
import socket
def refuse(*args): raise SystemExit("a connection was opened")
socket.socket.connect = refuse
from celery import Celery, current_app
own = Celery("own", set_as_current=True)
import webhooks
assert current_app._get_current_object() is own, current_app
assert webhooks.deliver.name == "webhooks.deliver"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
