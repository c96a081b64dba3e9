"""The README says what is so: its tables and commands are compared with the code."""

import re
from pathlib import Path
from typing import Any

import click
import pytest
from cryptography.exceptions import InvalidSignature
from flower.views.auth import authenticate

from tests.lab.refused import to_markdown
from webhooks.cli import cli
from webhooks.config import Settings
from webhooks.errors import ErrorKind
from webhooks.models import TRIGGERS, AttemptDetails
from webhooks.rules.signing import Scheme, new_secret, public_key, sign
from webhooks.store.deadletters import Reason

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
#: Without examples, which are code or output.
PROSE = re.sub(r"^ *```.*?^ *```$", "", README, flags=re.DOTALL | re.MULTILINE)
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "webhooks").rglob("*.py")))

#: Words of Celery and kombu that the README quotes beside our own.
FOREIGN_LINES = {"Unrecoverable error"}


def cells(line: str) -> list[str]:
    """Take a row of a table apart."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table(first_column: str, nth: int = 0) -> list[list[str]]:
    """Return the rows of the nth table whose first column has this name, without the head."""
    tables = re.findall(r"(?:^ *\|.*\n)+", README, flags=re.MULTILINE)
    parsed = [[cells(line) for line in lines.splitlines()] for lines in tables]
    found = [rows[2:] for rows in parsed if rows[0][0] == first_column]
    assert len(found) > nth, f"there is no table of {first_column}"
    return found[nth]


def names(rows: list[list[str]]) -> list[str]:
    """Return what stands in backticks in the first column."""
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]


def shown(default: object) -> str:
    """Write a default as the README does, which is as the environment variable would have it."""
    if default in ((), None):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def test_settings_are_those_of_the_class():
    expected = [
        [
            f"`WEBHOOKS_{name.upper()}`",
            shown(field.default),
            str(field.description),
        ]
        for name, field in Settings.model_fields.items()
    ]
    assert table("Name") == expected


def test_settings_in_the_text_exist():
    known = {f"WEBHOOKS_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"\bWEBHOOKS_[A-Z][A-Z_]+[A-Z]\b", README))
    assert {name for name in named - known if not name.startswith("WEBHOOKS_TEST_")} == set()


def test_subcommands_in_the_text_exist():
    quoted = re.findall(r"(?:`|&& |\$ |^)webhooks ([a-z]+)\b", README, flags=re.MULTILINE)
    assert quoted
    assert set(quoted) - set(cli.commands) == set()


def test_every_subcommand_has_its_line():
    listed = [row[0].strip("`").split()[1] for row in table("Command")]
    assert listed == list(cli.commands)


def test_options_of_subcommands_exist():
    for words in re.findall(r"`webhooks ([a-z][^`]*)`", README):
        name, *rest = words.split()
        command = cli.commands[name]
        if isinstance(command, click.Group) and rest[:1]:
            command = command.commands[rest[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options | {"--help"}, words


def test_triggers_are_those_of_the_contract():
    rows = {row[0].strip("`"): row[1:] for row in table("Trigger")}
    assert list(rows) == list(TRIGGERS)
    for name, trigger in TRIGGERS.items():
        kind, events, narrowed_by = rows[name]
        assert kind == f"`{trigger.type}`"
        assert set(events.split(", ")) == trigger.events
        assert narrowed_by == ", ".join(f"`{field}` = `data.{key}`" for field, key in trigger.narrowed_by.items())


def test_reasons_of_dead_letters_are_all_there():
    assert set(names(table("Reason"))) == {reason.value for reason in Reason}


def test_error_kinds_are_all_there():
    assert set(names(table("`error_kind`"))) == {kind.value for kind in ErrorKind}


def test_fields_of_an_attempt_are_all_there():
    assert set(names(table("Field", 1))) == set(AttemptDetails.model_fields)


@pytest.mark.parametrize("line", names(table("Line has")))
def test_log_lines_are_those_that_the_code_writes(line: str):
    assert line in FOREIGN_LINES or line in SOURCE


def test_modules_exist():
    package = ROOT / "webhooks"
    for name in names(table("Module of `webhooks/`")):
        assert (package / f"{name}.py").exists() or (package / name / "__init__.py").exists(), name


def test_glossary_has_the_words_of_the_project():
    words = {row[0] for row in table("Word")}
    assert words >= {
        *("event", "webhook", "endpoint", "producer", "receiver", "delivery", "attempt", "retry", "log", "ledger"),
        *("status", "outcome", "error_kind"),
    }


@pytest.mark.parametrize("word", ["subscriber", "consumer", "callback", "hook", "payload URL"])
def test_text_has_no_second_word_for_a_thing(word: str):
    assert re.findall(rf"\b{word}s?\b", re.sub(r"`[^`]*`", "", PROSE), flags=re.IGNORECASE) == []


def test_links_within_the_text_lead_somewhere():
    titles = re.findall(r"^#+ (.*)$", PROSE, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) - anchors == set()


def test_request_that_is_shown_has_the_signature_of_its_secret():
    head, _, body = re.search(r"^POST /hook .*?^```", README, re.DOTALL | re.MULTILINE)[0].partition("\n\n")  # pyright: ignore[reportOptionalSubscript]
    headers = dict(line.split(": ", 1) for line in head.splitlines()[1:])
    body = body.removesuffix("\n```").encode()
    assert headers["Content-Length"] == str(len(body))
    secret = re.search(r"the request shown above was\s+`(.*?)`", README)[1]  # pyright: ignore[reportOptionalSubscript]
    assert (
        sign([secret], headers["webhook-id"], int(headers["webhook-timestamp"]), body) == headers["webhook-signature"]
    )


def test_oauth_example_lets_in_whom_it_says():
    pattern = re.search(r"--auth='([^']+)'", README)[1]  # pyright: ignore[reportOptionalSubscript]
    assert authenticate(pattern, "somebody@example.com")
    for other in ("somebody@example.com.evil.test", "somebody@examplexcom", "somebody@evil.test"):
        assert not authenticate(pattern, other)


def test_check_of_v1a_that_is_shown_works():
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "def check_v1a" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    key, headers = new_secret(Scheme.V1A), {"webhook-id": "msg_1", "webhook-timestamp": "1795464325"}
    headers["webhook-signature"] = sign([new_secret(), key], "msg_1", 1795464325, b"{}")
    names["check_v1a"](public_key(key), headers, b"{}")
    with pytest.raises(InvalidSignature):
        names["check_v1a"](public_key(key), headers, b"[]")


def test_what_is_refused_is_what_is_tested():
    tested = [cells(line) for line in to_markdown().splitlines()[2:]]
    assert table("What is refused") == tested


def test_tables_are_aligned():
    for block in re.findall(r"(?:^ *\|.*\n)+", README, flags=re.MULTILINE):
        assert len({len(line) for line in block.splitlines()}) == 1, block
