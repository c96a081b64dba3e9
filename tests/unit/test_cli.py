"""The command without servers: parsing, errors in one line, exit codes, and output that cannot steer a terminal."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from bson import ObjectId
from click.testing import CliRunner, Result

from tests.lab.logs import COMPANY, NOON, make_attempt, make_log
from webhooks.cli import check_cmd, cli
from webhooks.cli.logs_cmd import WINDOW, Follower, LogPrinter
from webhooks.cli.output import Table, place_of, print_json
from webhooks.errors import StoreUnavailable
from webhooks.models import COTWebhookLog
from webhooks.models.wire import make_safe
from webhooks.rules.times import parse_time
from webhooks.store.logs import LogQuery, LogStore
from webhooks.store.webhooks import why_unusable
from webhooks.version import __version__

HOSTILE = "\x1b[31mred\x1b]0;title\x07 \x9b2J [bold]not rich[/bold] \u202egnp.exe\r\nsecond line"
ADD = ["add", "--company", COMPANY, "--url", "https://a.example/", "--code", "a", "--trigger"]


def run(*args: str, stdin: bytes | None = None, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, args, input=stdin, env=env)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["add"], "Missing option '--company'"),
        (["add", "--company", "62"], "24 hexadecimal digits"),
        ([*ADD, "create-edit-delete-dog"], "is not one of"),
        ([*ADD, "logout-user", "--survey", COMPANY], "--survey does not narrow logout-user, only create-edit-delete-s"),
        ([*ADD, "create-edit-delete-survey", "--task-group", COMPANY], "only create-edit-delete-task"),
        (["edit", "a"], "nothing to change"),
        (["edit", "a", "--code", "b"], "No such option '--code'"),
        ([*ADD, "logout-user", "--on-exhausted", "stop"], "goes with an ordered webhook only: give --ordered"),
        ([*ADD, "logout-user", "--on-exhausted", "next", "--unordered"], "goes with an ordered webhook only"),
        ([*ADD, "logout-user", "--ordered", "--on-exhausted", "wait"], "is not one of 'next', 'stop'"),
        ([*ADD, "logout-user", "--rate-burst", "5"], "goes with a limit only: give --rate-limit"),
        ([*ADD, "logout-user", "--rate-limit", "none", "--rate-burst", "5"], "goes with a limit only"),
        ([*ADD, "logout-user", "--rate-limit", "5", "--rate-burst", "0"], "0 is not in the range 1<=x<=10000"),
        *(
            ([*ADD, "logout-user", "--rate-limit", rate], "is neither a number from 0.001 to 10000 nor none")
            for rate in ("0", "-1", "nan", "inf", "1e3", "1_0", "١", "0.0009", "10000.1", "", " 5", "5/s", "None")
        ),
        (["logs", "--since", "yesterday"], "such as 90s 30m 2h 7d"),
        (["logs", "-n", "-1"], "-1"),
        (["logs", "--follow", "--until", "2h"], "does not go with --until"),
        (["logs", "--status", "40"], "a class such as 4xx"),
        (["logs", "--kind", "gone"], "must be one of lookup"),
        (["logs", "--type", "COTTask logout"], "such as COTTask create"),
        (["resend", "--failed", "--stop", "x"], "or one of --failed"),
        (["resend", "msg_1", "--since", "1h"], "--since goes with --failed only"),
        (["resend", "--list", "--rate", "5"], "--rate goes with --failed only"),
        (["resend", "--stop", "x", "--detach"], "--detach goes with --failed, --watch and --continue only"),
        (["resend", "--failed", "--since", "1h", "--wait", "1"], "--wait goes with a delivery's id only"),
        (["send", "no-such-file"], "No such file"),
    ],
    ids=lambda value: "_".join(value[:6:5]) if isinstance(value, list) else "",
)
def test_usage_error_is_one_line_and_exit_code_2(args: list[str], said: str) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("webhooks: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("ftp://a.example/", "a", "url: its scheme is neither http nor https"),
        ("https://u:p@a.example/", "a", "url: it holds credentials"),
        ("https://a.example/", "Wo", "code: must be small letters"),
    ],
    ids=["scheme", "password", "code"],
)
def test_add_with_input_that_breaks_the_contract_fails(url: str, code: str, said: str) -> None:
    result = run("add", "--company", COMPANY, "--trigger", "logout-user", "--url", url, "--code", code)
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_arguments_shows_help_in_the_order_of_use() -> None:
    result = run()
    assert result.exit_code == 2
    assert result.stderr.index("  add ") < result.stderr.index("  list ") < result.stderr.index("  check ")


def test_version() -> None:
    assert run("--version").stdout == f"webhooks {__version__}\n"


def test_help_of_add_names_every_trigger() -> None:
    text = "".join(run("add", "--help").stdout.split())
    assert all(f"create-edit-delete-{name}" in text for name in ("user", "task", "survey", "property", "note"))
    assert "logout-user" in text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "it is not JSON"),
        (b"[]", "it must be an object"),
        (b"\xff", "it is not UTF-8"),
        (b"{}", "company: is missing"),
        (b'{"a":1,"a":2}', "a key appears twice"),
    ],
    ids=["broken", "list", "latin", "empty", "twice"],
)
def test_send_of_a_bad_event_is_one_line(data: bytes, said: str) -> None:
    result = run("send", "-", stdin=data)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("webhooks: invalid event: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr


@pytest.mark.parametrize("command", [["list"], ["logs"], ["send", "-"], ["check"], ["up"]], ids=lambda args: args[0])
def test_bad_setting_is_one_line_of_a_real_process(command: list[str], tmp_path: Path) -> None:
    done = run_process(["-m", "webhooks", *command], tmp_path, WEBHOOKS_MAX_RETRIES="many")
    assert done.returncode == 1
    assert done.stderr.startswith("webhooks: WEBHOOKS_MAX_RETRIES: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["worker", "flower", "report"])
def test_bad_setting_is_one_line_of_celery(command: str, tmp_path: Path) -> None:
    done = run_process(["-m", "celery", "-A", "webhooks", command], tmp_path, WEBHOOKS_MAX_RETRIES="many")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: WEBHOOKS_MAX_RETRIES: ")
    assert done.stderr.count("\n") == 1


def run_process(args: list[str], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("90s", NOON - timedelta(seconds=90)),
        ("30m", NOON - timedelta(minutes=30)),
        ("2h", NOON - timedelta(hours=2)),
        ("7d", NOON - timedelta(days=7)),
        ("1w", NOON - timedelta(days=7)),
        ("2026-05-05", datetime(2026, 5, 5, tzinfo=UTC)),
        ("2026-05-05T19:54", datetime(2026, 5, 5, 19, 54, tzinfo=UTC)),
        ("2026-05-05T19:54:29.924Z", datetime(2026, 5, 5, 19, 54, 29, 924_000, tzinfo=UTC)),
        ("2026-05-05T19:54+02:00", datetime(2026, 5, 5, 17, 54, tzinfo=UTC)),
    ],
)
def test_time(text: str, instant: datetime) -> None:
    assert parse_time(text, NOON) == instant


@pytest.mark.parametrize(
    "text", ["", "2", "h", "-2h", "2y", "999999999w", "2026-13-01", "0001-01-01T00:00+01:00", "٢h"]
)
def test_time_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        parse_time(text, NOON)


def test_hostile_text_is_made_harmless() -> None:
    safe = make_safe(HOSTILE)
    assert safe.isprintable()
    assert "\\x1b[31mred\\x1b]0;title\\x07 \\x9b2J [bold]not rich[/bold] \\u202egnp.exe\\r\\n" in safe


@pytest.mark.parametrize("width", [80, 120, None])
def test_hostile_response_in_the_table(width: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    LogPrinter(width=width).print([make_log(HOSTILE, attempt=make_attempt(webhook="\x1b[2Jcode"))])
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert "\\x1b[31mred" in out
    assert "second line" not in out


def test_hostile_response_as_json_is_the_same_value(capsys: pytest.CaptureFixture[str]) -> None:
    log = make_log(HOSTILE + "\U000e0001 é")
    print_json(log.to_json())
    out = capsys.readouterr().out
    assert out.rstrip("\n").isprintable()
    assert json.loads(out) == log.to_wire()
    assert "é" in out


def test_log_row_tells_no_response_from_a_409_and_says_which_was_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    LogPrinter().print(
        [
            make_log("connect ECONNREFUSED 127.0.0.1:9", attempt=make_attempt()),
            make_log("conflict", attempt=make_attempt(error_kind=None, next_at="2026-05-05T12:00:30.000Z")),
            make_log("by another system"),
        ]
    )
    assert capsys.readouterr().out.splitlines() == [
        "TIME (UTC)           RESULT               RETRY    EVENT           WEBHOOK                   MS  DELIVERY  "
        "EVENT ID  RESPONSE",
        "2026-05-05 12:00:00  409 connect_refused  3, last  COTTask create  wo_update                 13  msg_1     "
        "e1        connect ECONNREFUSED 127.0.0.1:9",
        "2026-05-05 12:00:00  409 failed           3        COTTask create  wo_update                 13  msg_1     "
        "e1        conflict",
        "2026-05-05 12:00:00  409 failed           3        COTTask create  62685990d918fb5557f9f992   -  -         "
        "-         by another system",
    ]


def test_log_row_fits_a_terminal_with_ids_that_commands_take(capsys: pytest.CaptureFixture[str]) -> None:
    attempt = make_attempt(
        delivery_id="msg_0cea2d5116f952fe568a2b89190da185~1", event_id="9c488d62-0022-4a4a-9d99-b6c009af59d8"
    )
    for width in (120, 200):
        LogPrinter(width=width).print([make_log("refused", attempt=attempt)])
    narrow, wide = (line for line in capsys.readouterr().out.splitlines() if line.startswith("2026"))
    assert "  msg_0cea2d51~1  9c488d62  " in f"{narrow}  "
    assert len(narrow) <= 120
    assert "  msg_0cea2d5116f952fe568a2b89190da185~1  9c488d62-0022-4a4a-9d99-b6c009af59d8  refused" in wide


def test_logs_of_refusals_name_the_settings_once(capsys: pytest.CaptureFixture[str]) -> None:
    refused = make_log("address not allowed: a.example:80", attempt=make_attempt(error_kind="not_allowed"))
    printer = LogPrinter()
    printer.print([make_log("connect ECONNREFUSED 127.0.0.1:9", attempt=make_attempt()), make_log("by another system")])
    assert capsys.readouterr().err == ""
    printer.print([refused, refused])
    printer.print([refused])
    said = "note: not_allowed: the workers' WEBHOOKS_ALLOWED_NETWORKS and WEBHOOKS_ALLOWED_PORTS say what is allowed"
    assert capsys.readouterr().err.count(said) == 1


def test_table_cuts_only_the_last_column_and_only_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    row = ["x" * 30, "y" * 200]
    Table(cut=True).print([row])
    Table(cut=True, width=80).print([row])
    Table(cut=True, width=40).print([row])
    assert capsys.readouterr().out.splitlines() == [
        "x" * 30 + "  " + "y" * 200,
        "x" * 30 + "  " + "y" * 47 + "…",
        "x" * 30,
        "    " + "y" * 35 + "…",
    ]


def test_table_keeps_its_widths(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table()
    table.print([["long code", "a"]])
    table.print([["日本", "b"]])
    assert capsys.readouterr().out == "long code  a\n日本       b\n"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://127.0.0.1:6379/0", "127.0.0.1:6379/0"),
        ("amqp://user:pass@mq.example:5672//", "mq.example:5672//"),
        ("mongodb://u:p@a.example:1,b.example:2/webhooks?replicaSet=rs", "a.example:1,b.example:2/webhooks"),
        ("redis://:pa/ss@h.example/0", "h.example/0"),
        ("redis://:pa?ss@h.example/0", "…"),
        ("redis://h.example/0?password=a@b", "…"),
    ],
)
def test_place_of_a_url_never_shows_the_password(url: str, place: str) -> None:
    assert place_of(url) == place


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"_id": "62685990d918fb5557f9f992"}, "_id: must be stored as an ObjectId"),
        ({"company": COMPANY}, "company: must be stored as an ObjectId"),
        ({"isActive": "yes"}, "isActive: "),
        ({"trigger": None}, "trigger: "),
    ],
    ids=["fine", "id", "company", "active", "trigger"],
)
def test_stored_webhook_that_gets_no_events_has_a_reason(change: dict[str, Any], reason: str | None) -> None:
    webhook = {
        "_id": ObjectId(),
        "company": ObjectId(COMPANY),
        "isActive": True,
        "trigger": "logout-user",
        "url": "https://a.example/",
        "code": "a",
    }
    found = why_unusable({**webhook, **change})
    assert found is None if reason is None else (found or "").startswith(reason)


def test_redis_that_loses_messages_is_warned_of() -> None:
    dangers = check_cmd._find_dangers({"maxmemory_policy": "allkeys-lru", "aof_enabled": 0})
    assert [danger.split(":")[0] for danger in dangers] == ["maxmemory-policy is allkeys-lru", "appendonly is off"]
    assert check_cmd._find_dangers({"maxmemory_policy": "noeviction", "aof_enabled": 1}) == []


class FakeLogStore:
    """Logs in memory, and an outage at will."""

    def __init__(self) -> None:
        self.logs: list[COTWebhookLog] = []
        self.is_away = False

    def read_ids(self, query: LogQuery) -> dict[ObjectId, datetime]:
        if self.is_away:
            raise StoreUnavailable("MongoDB is not reachable")
        assert query.since is not None
        return {log.id: log.createdAt for log in self.logs if log.createdAt >= query.since}

    def get_many(self, log_ids: list[ObjectId]) -> list[COTWebhookLog]:
        return sorted((log for log in self.logs if log.id in log_ids), key=lambda log: log.createdAt)


def test_follower_notices_late_logs_once() -> None:
    store = FakeLogStore()
    store.logs = [make_log("before")]
    follower = Follower(cast("LogStore", store), LogQuery(), NOON)
    second = timedelta(seconds=1)
    store.logs.append(make_log("new", at=NOON + 3 * second))
    assert [log.response for log in follower.poll(NOON + 4 * second)] == ["new"]
    store.logs.append(make_log("late", at=NOON + second))
    assert [log.response for log in follower.poll(NOON + 60 * second)] == ["late"]
    assert follower.poll(NOON + WINDOW) == []
    assert follower.poll(NOON + 2 * WINDOW) == []
    assert follower.poll(NOON + 3 * WINDOW) == []


def test_follower_does_not_forget_what_an_outage_made_late() -> None:
    store = FakeLogStore()
    follower = Follower(cast("LogStore", store), LogQuery(), NOON)
    store.is_away = True
    for minute in range(60):
        with pytest.raises(StoreUnavailable):
            follower.poll(NOON + timedelta(minutes=minute))
    store.is_away = False
    store.logs = [make_log("from the outage", at=NOON + timedelta(minutes=1))]
    assert follower.poll(NOON + timedelta(minutes=60)) == store.logs
    store.logs.append(make_log("written still later", at=NOON + timedelta(minutes=2)))
    assert [log.response for log in follower.poll(NOON + timedelta(minutes=60, seconds=30))] == ["written still later"]
    assert follower.poll(NOON + timedelta(minutes=70)) == []
    assert follower.poll(NOON + timedelta(minutes=80)) == []


def test_follower_keeps_to_since() -> None:
    store = FakeLogStore()
    follower = Follower(cast("LogStore", store), LogQuery(since=NOON), NOON)
    store.logs = [make_log("too old", at=NOON - timedelta(seconds=1)), make_log("new")]
    assert [log.response for log in follower.poll(NOON)] == ["new"]
