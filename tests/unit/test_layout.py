"""The import rule: a module imports from its own folder and from folders to its left; importing opens no connection."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import webhooks

PACKAGE = Path(webhooks.__file__).parent

#: From left to right. What else stands at the top of the package may import all.
ORDER = ["errors", "version", "transport", "models", "rules", "config", "producer", "store", "sender"]
ORDER += ["delivery", "local", "worker", "metrics", "jobs", "web", "cli"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def modules_of(path: Path) -> list[str]:
    """Return what a module imports from, with dots."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    # `from webhooks import name`: what the top offers, which only the top may have.
    modules += [
        f"webhooks.{alias.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "webhooks"
        for alias in node.names
    ]
    return modules


def imported_by(path: Path) -> set[str]:
    return {module.split(".")[1] for module in modules_of(path) if module.startswith("webhooks.")}


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) in ORDER],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_module_imports_only_from_the_left(path: Path):
    allowed = ORDER[: ORDER.index(room_of(path)) + 1]
    assert imported_by(path) <= set(allowed)


@pytest.mark.parametrize("room", ["models", "rules", "store", "sender", "delivery"])
def test_room_works_without_celery(room: str):
    assert not [
        (path.name, module)
        for path in (PACKAGE / room).rglob("*.py")
        for module in modules_of(path)
        if module.partition(".")[0] == "celery"
    ]


def test_top_holds_nothing_but_what_the_order_names():
    top = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert top == {*ORDER, "__init__", "__main__", "testing"}


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
