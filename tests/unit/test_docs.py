"""README and docs say what is so: their tables, commands, settings, paths and links are compared with the code."""

import ast
import json
import logging
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from cryptography.exceptions import InvalidSignature
from flower.views.auth import authenticate

from tests.fairness.scenarios import SCENARIOS
from tests.faults.rows import ROWS
from tests.lab.logs import make_attempt, make_log
from tests.lab.pages import PAGES, README, ROOT, blocks, cells, commands, names, page, prose, quoted, table, tables
from tests.lab.refused import to_markdown
from tests.unit.test_layout import ORDER
from webhooks.cli import cli
from webhooks.config import PREFIX, Settings, get_settings
from webhooks.delivery.record import name_fields
from webhooks.errors import ErrorKind
from webhooks.models import TRIGGERS, AttemptDetails
from webhooks.rules.encryption import new_key
from webhooks.rules.signing import Scheme, new_secret, public_key, sign
from webhooks.store.deadletters import Reason
from webhooks.worker.json_lines import JsonFormatter

SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "webhooks").rglob("*.py")))
SETTINGS = {f"{PREFIX}{name.upper()}": field for name, field in Settings.model_fields.items()}
MAX_README_LINES = 250

#: Words of Celery and kombu that the docs quote beside our own.
FOREIGN_LINES = {"Unrecoverable error"}
#: Options of Celery, Flower and the suites.
FOREIGN_OPTIONS = {"--address", "--autoscale", "--conf", "--config", "--hostname", "--loader", "--result-backend"}
FOREIGN_OPTIONS |= {"--logfile", "--only", "--quick", "--size"}

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def shown(default: object) -> str:
    """Write a default as the docs do, which is as the environment variable would have it."""
    if default in ((), None):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", prose(path.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= MAX_README_LINES


def test_readme_links_every_page_of_docs():
    linked = set(re.findall(r"\]\(docs/([^)#]+)", README.read_text().split("## Where next")[1]))
    assert linked == {path.name for path in PAGES if path.parent == ROOT / "docs"}


# ── Every page ──────────────────────────────────────────────────────────────────────────────────────────────────────


@each_page
def test_links_lead_somewhere(path: Path):
    for target in re.findall(r"\]\(([^)]+)\)", prose(path.read_text())):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@each_page
def test_settings_exist(path: Path):
    named = set(re.findall(r"\bWEBHOOKS_[A-Z][A-Z_]+[A-Z]\b", path.read_text()))
    assert {name for name in named - SETTINGS.keys() if not name.startswith("WEBHOOKS_TEST_")} == set()


@each_page
def test_commands_and_their_options_exist(path: Path):
    for words in commands(path.read_text(), "webhooks"):
        command: click.Command = cli
        options = {"--help"}
        for word in words:
            if isinstance(command, click.Group) and not word.startswith("-") and word != "COMMAND":
                assert word in command.commands, words
                command = command.commands[word]
                options |= {opt for one in command.params for opt in (*one.opts, *one.secondary_opts)}
        if "COMMAND" not in words:
            used = {word.partition("=")[0] for word in words if re.fullmatch(r"-[a-z]|--[a-z-]+(=.*)?", word)}
            assert used <= options, words


@each_page
def test_options_named_by_themselves_exist(path: Path):
    groups = [cli, *(command for command in cli.commands.values() if isinstance(command, click.Group))]
    ours = [one for group in groups for command in group.commands.values() for one in command.params]
    known = FOREIGN_OPTIONS | {option for one in ours for option in (*one.opts, *one.secondary_opts)}
    named = {re.split(r"[ =]", text)[0] for text in quoted(path.read_text()) if text.startswith("--")}
    assert named - known == set()


@each_page
def test_modules_that_are_run_exist(path: Path):
    for words in commands(path.read_text(), "python -m"):
        module = ROOT / words[0].replace(".", "/")
        assert words[0] == "pytest" or module.with_suffix(".py").exists() or (module / "__main__.py").exists(), words


@each_page
def test_paths_exist(path: Path):
    for name in quoted(path.read_text()):
        if re.match(r"(webhooks|tests|docs|\.ci)/", name):
            assert (ROOT / name.partition("::")[0]).exists(), name


@each_page
def test_python_examples_import_what_exists(path: Path):
    for code in blocks(path.read_text(), "python"):
        # As a REPL of asyncio takes it.
        tree = compile(code, str(path), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("webhooks"):
                module = import_module(node.module or "")
                assert {alias.name for alias in node.names} <= set(dir(module))


@each_page
def test_text_has_no_second_word_for_a_thing(path: Path):
    text = re.sub(r"`[^`]*`", "", prose(path.read_text()))
    words = "subscriber|consumer|callback|hook|payload URL"
    assert re.findall(rf"\b(?:{words})s?\b", text, flags=re.IGNORECASE) == []


@each_page
def test_tables_are_aligned_or_compact(path: Path):
    """Aligned where people read the source; compact where many branches add rows, which so touch no other."""
    for block in tables(path.read_text()):
        lines = [line.strip() for line in block.splitlines()]
        is_compact = all(line == f"| {' | '.join(cells(line))} |".replace("|  |", "| |") for line in lines)
        assert len({len(line) for line in lines}) == 1 or is_compact, block


@each_page
def test_lines_of_prose_fit(path: Path):
    lines = [line for line in prose(path.read_text()).splitlines() if not line.lstrip().startswith("|")]
    assert [line for line in lines if len(line) > 120] == []


# ── One page ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_settings_are_those_of_the_class():
    expected = [[f"`{name}`", shown(field.default), str(field.description)] for name, field in SETTINGS.items()]
    assert table(page("settings"), "Name") == expected


def test_readmes_settings_have_their_defaults():
    rows = table(README.read_text(), "Setting")
    assert len(rows) == 10
    assert [row[1] for row in rows] == [shown(SETTINGS[name].default) for name in names(rows)]


@pytest.mark.parametrize("what", ["tests/bench/README.md", "tests/faults/README.md"])
def test_readmes_figures_stand_where_they_are_measured(what: str):
    figures = {
        "tests/bench/README.md": [figure for row in table(README.read_text(), "Measured") for figure in row[1:]],
        "tests/faults/README.md": re.findall(r"0 of ([\d,]+) deliveries", README.read_text()),
    }[what]
    assert figures
    for figure in figures:
        assert re.search(rf"(?<![\d.,]){figure.removesuffix(' ms')}(?![\d.,]\d)", page(what)), figure


def test_readmes_environment_can_be_used(monkeypatch: pytest.MonkeyPatch):
    [block] = [block for block in blocks(README.read_text(), "sh") if block.startswith(PREFIX)]
    given = dict(line.split("=", 1) for line in block.splitlines())
    for name, value in given.items():
        monkeypatch.setenv(name, new_key() if value == "KEY" else value)
    settings = get_settings()
    assert settings.broker_url.startswith("rediss://")
    assert "tls=true" in settings.mongodb_url


def test_units_start_what_exists():
    units = blocks(README.read_text(), "ini")
    starts = [
        re.findall(r"^ExecStart=/opt/webhooks/bin/celery -A webhooks (\w+)", unit, re.MULTILINE) for unit in units
    ]
    assert starts == [["worker"], ["flower"]]
    grace = re.search(r"TimeoutStopSec=(\d+)", units[0])
    assert grace
    assert int(grace[1]) > Settings().total_timeout_s, "attempts in flight must have time to end"


def test_every_subcommand_has_its_line():
    listed = [row[0].strip("`").split()[1] for row in table(page("cli"), "Command")]
    assert listed == list(cli.commands)


def test_triggers_are_those_of_the_contract():
    rows = {row[0].strip("`"): row[1:] for row in table(page("webhooks"), "Trigger")}
    assert list(rows) == list(TRIGGERS)
    for name, trigger in TRIGGERS.items():
        kind, events, narrowed_by = rows[name]
        assert kind == f"`{trigger.type}`"
        assert set(events.split(", ")) == trigger.events
        assert narrowed_by == ", ".join(f"`{field}` = `data.{key}`" for field, key in trigger.narrowed_by.items())


@pytest.mark.parametrize("text", [README.read_text(), page("sending")], ids=["README", "sending"])
def test_event_types_are_those_of_the_contract(text: str):
    assert {trigger.type for trigger in TRIGGERS.values()} <= set(quoted(text))


def test_reasons_of_dead_letters_are_all_there():
    assert set(names(table(page("troubleshooting"), "Reason"))) == {reason.value for reason in Reason}


def test_error_kinds_are_all_there():
    assert set(names(table(page("logs"), "`error_kind`"))) == {kind.value for kind in ErrorKind}


@pytest.mark.parametrize("kind", re.findall(r"`409 (\w+)`", page("troubleshooting")))
def test_error_kinds_in_troubleshooting_exist(kind: str):
    assert kind in {*ErrorKind, "failed"}


def test_fields_of_an_attempt_are_all_there():
    assert set(names(table(page("logs"), "Field", 1))) == set(AttemptDetails.model_fields)


@pytest.mark.parametrize("line", names(table(page("operations"), "Line has")))
def test_log_lines_are_those_that_the_code_writes(line: str):
    assert line in FOREIGN_LINES or line in SOURCE


def test_names_in_json_lines_are_all_there():
    failed = (KeyError, KeyError(), None)
    record = logging.LogRecord("x", logging.INFO, "", 0, "m", None, failed)
    assert names(table(page("logs"), "Name")) == list(json.loads(JsonFormatter().format(record)))
    assert names(table(page("logs"), "Name", 1)) == list(name_fields(make_log(attempt=make_attempt())))


def test_readmes_log_lines_are_explained_in_operations():
    alarms = re.search(r"- Alarm on these words.*?;", README.read_text(), re.DOTALL)
    assert alarms
    assert set(quoted(alarms[0])) <= set(names(table(page("operations"), "Line has")))


def test_modules_of_the_architecture_are_those_of_the_import_rule_in_its_order():
    assert names(table(page("architecture"), "Module of `webhooks/`")) == [*ORDER, "testing"]


def test_glossary_has_the_words_of_the_project():
    words = [row[0] for row in table(page("architecture"), "Word")]
    assert len(words) == len(set(words)), "one word, one meaning"
    assert {*words} >= {
        *("event", "webhook", "endpoint", "producer", "receiver", "delivery", "attempt", "retry", "log", "ledger"),
        *("status", "outcome", "error_kind", "lane", "gate", "lease", "claim", "concurrency window"),
    }


@pytest.mark.parametrize("row", table(page("guarantees"), "Promise"), ids=lambda row: row[0])
def test_promise_names_a_test_that_exists(row: list[str]):
    path, _, name = row[1].strip("`").partition("::")
    name, _, parameter = name.rstrip("]").partition("[")
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if parameter:
        assert parameter in {*(row.id for row in ROWS), *(scenario.name for scenario in SCENARIOS)}


def test_request_that_is_shown_has_the_signature_of_its_secret():
    text = page("receiving")
    [request] = [block for block in blocks(text, "text") if block.startswith("POST ")]
    head, _, body = request.removesuffix("\n").partition("\n\n")
    headers = dict(line.split(": ", 1) for line in head.splitlines()[1:])
    assert headers["Content-Length"] == str(len(body.encode()))
    [secret] = re.findall(r"request\s+shown\s+above\s+was\s+`(.*?)`", text)
    signed = sign([secret], headers["webhook-id"], int(headers["webhook-timestamp"]), body.encode())
    assert signed == headers["webhook-signature"]


def test_oauth_example_lets_in_whom_it_says():
    [pattern] = re.findall(r"--auth='([^']+)'", page("operations"))
    assert authenticate(pattern, "somebody@example.com")
    for other in ("somebody@example.com.evil.test", "somebody@examplexcom", "somebody@evil.test"):
        assert not authenticate(pattern, other)


def test_check_of_v1a_that_is_shown_works():
    [code] = [block for block in blocks(page("receiving"), "python") if "def check_v1a" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    key, headers = new_secret(Scheme.V1A), {"webhook-id": "msg_1", "webhook-timestamp": "1795464325"}
    headers["webhook-signature"] = sign([new_secret(), key], "msg_1", 1795464325, b"{}")
    names["check_v1a"](public_key(key), headers, b"{}")
    with pytest.raises(InvalidSignature):
        names["check_v1a"](public_key(key), headers, b"[]")


def test_what_is_refused_is_what_is_tested():
    tested = [cells(line) for line in to_markdown().splitlines()[2:]]
    assert table(page("security"), "What is refused") == tested
