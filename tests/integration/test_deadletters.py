"""Dead letters in a real MongoDB, and the command that lists, shows, resends and drops them, with a real Redis."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from bson import ObjectId
from click.testing import CliRunner, Result
from kombu.message import Message
from pymongo.database import Database

from tests.lab.servers import Server
from webhooks.cli import cli, dead_cmd
from webhooks.config import get_settings
from webhooks.local import servers
from webhooks.producer.app import app
from webhooks.store.deadletters import DeadLetter, DeadLetterStore, Reason
from webhooks.transport.lanes import TAKEN_FROM_HEADER

QUEUE = "webhooks.deliver"
#: Headers of a message that was put aside while its taker has it.
BY_TAKING = {"redelivered": True, TAKEN_FROM_HEADER: "-"}
HOSTILE = "\x1b[2J\u202e\r\nsecond"

Documents = Database[dict[str, Any]]


@pytest.fixture
def store(database: Documents) -> DeadLetterStore:
    store = DeadLetterStore(database)
    store.ensure_indexes()
    store.ensure_indexes()
    return store


@pytest.fixture
def run(redis_url: str, database: Documents, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command in this process."""
    host, port = database.client.address or ("", 0)
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", redis_url)
    monkeypatch.setenv("WEBHOOKS_MONGODB_URL", f"mongodb://{host}:{port}/{database.name}")
    get_settings.cache_clear()
    # The app of this process read its broker's URL when some test first needed it.
    monkeypatch.setitem(app.conf, "broker_url", redis_url)
    return lambda *args, **options: CliRunner().invoke(cli, ["dead", *args], **options)


def put(store: DeadLetterStore, reason: Reason = Reason.DEFECT, body: bytes = b"{}", **headers: Any) -> ObjectId:
    message = Message(
        body=body,
        content_type="application/json",
        content_encoding="utf-8",
        headers={"task": "webhooks.deliver", "id": str(ObjectId()), **headers},
        properties={"correlation_id": "e1", "delivery_tag": str(ObjectId()), "priority": 0, "delivery_mode": 2},
        delivery_info={"exchange": "", "routing_key": QUEUE},
    )
    letter = DeadLetter.make(reason, f"why {HOSTILE}", message, "w1@host")
    store.write(letter)
    time.sleep(0.002)  # so that the next one is younger: MongoDB's dates have milliseconds
    return letter.id


def count_waiting() -> int:
    with app.connection_for_read() as connection:
        channel: Any = connection.default_channel
        return channel.queue_declare(QUEUE, passive=True).message_count


def test_letter_written_twice_is_there_once(store: DeadLetterStore) -> None:
    letter = store.get(put(store))
    assert letter is not None
    assert letter.times == 1
    store.write(letter)
    assert store.count(10) == 1
    assert store.get(letter.id) == replace(letter, times=2)
    assert (store.delete(letter.id), store.delete(letter.id), store.get(letter.id)) == (True, False, None)


def test_letter_that_comes_back_while_it_is_sent_again_stays(store: DeadLetterStore) -> None:
    letter = store.get(put(store))
    assert letter is not None
    store.write(letter)  # a worker, between publishing and deleting
    store.delete_sent(letter)
    again = store.get(letter.id)
    assert again is not None
    store.delete_sent(again)
    assert store.count(10) == 0


def test_letters_are_read_without_payload_newest_first(store: DeadLetterStore) -> None:
    ids = [put(store), put(store, Reason.UNREADABLE), put(store)]
    assert [document["_id"] for document in store.read_newest(2)] == ids[:0:-1]
    assert "body" not in store.read_newest(1)[0]
    assert store.read_ids() == ids
    assert store.read_ids(Reason.UNREADABLE) == ids[1:2]
    assert [document["_id"] for document in store.read_newest(9, Reason.UNREADABLE)] == ids[1:2]


def test_list_shows_why(run: Callable[..., Result], store: DeadLetterStore) -> None:
    ids = [put(store), put(store, Reason.UNREADABLE)]
    lines = run("list").stdout.splitlines()
    assert lines[0].split() == ["TIME", "(UTC)", "ID", "REASON", "TASK", "QUEUE", "BYTES", "WHY"]
    assert [f"{ids[0]}  defect" in lines[1], f"{ids[1]}  unreadable" in lines[2]] == [True, True]
    assert "\n".join(lines).replace("\n", "").isprintable()
    assert "unreadable" not in run("list", "--reason", "defect").stdout
    (newest,) = run("list", "-n", "1", "--json").stdout.splitlines()
    assert json.loads(newest)["_id"] == str(ids[1])
    run("drop", "--all", "--yes")
    assert run("list").stderr == "webhooks: there are no dead letters\n"


def test_show_is_safe_for_a_terminal(run: Callable[..., Result], store: DeadLetterStore) -> None:
    letter_id = str(put(store, body=f'"{HOSTILE}"'.encode(), evil=HOSTILE, deep={"a": [1]}))
    out = run("show", letter_id).stdout
    assert out.replace("\n", "").isprintable()
    assert "headers.evil      \\x1b[2J\\u202e\\r\\nsecond\n" in out
    assert 'headers.deep      {"a": [1]}\n' in out
    assert '\n"\\x1b[2J\\u202e\\r\\nsecond"\n' in out
    whole = json.loads(run("show", letter_id, "--json").stdout)
    assert whole["body"] == f'"{HOSTILE}"'


def test_resend_publishes_what_came(
    run: Callable[..., Result], store: DeadLetterStore, redis_client: redis.Redis
) -> None:
    body = '{"n": 1.0, "ñ": "1"}'.encode()
    letter_id = put(store, body=body, id="e1", retries=3)
    assert run("resend", str(letter_id)).stdout == "sent again: 1\n"
    assert store.count(10) == 0
    assert count_waiting() == 1
    with app.connection_for_read() as connection:
        message: Any = connection.default_channel.basic_get(QUEUE)
    assert message.body == body
    assert message.headers.items() - BY_TAKING.items() == {("task", "webhooks.deliver"), ("id", "e1"), ("retries", 3)}
    assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")
    assert message.properties["correlation_id"] == "e1"


def test_resend_and_drop_of_some(run: Callable[..., Result], store: DeadLetterStore, redis_client: redis.Redis) -> None:
    ids = [put(store), put(store, Reason.UNREADABLE), put(store, Reason.UNREADABLE), put(store)]
    assert run("resend", "--all", "--reason", "unreadable").stdout == "sent again: 2\n"
    assert count_waiting() == 2
    assert store.read_ids() == [ids[0], ids[3]]
    result = run("drop", "--all", input="n\n")
    assert (result.exit_code, store.count(10)) == (130, 2)
    assert run("drop", "--all", input="y\n").stdout.endswith("dropped: 2\n")
    assert store.count(10) == 0


def test_letter_that_cannot_be_sent_stays_and_the_others_go(
    run: Callable[..., Result], store: DeadLetterStore, database: Documents, redis_client: redis.Redis
) -> None:
    cut, fine, missing = put(store), put(store), ObjectId()
    database["deadletters"].update_one({"_id": cut}, {"$set": {"is_cut": True}})
    result = run("resend", str(cut), str(missing), str(fine), str(fine))
    assert (result.exit_code, result.stdout) == (1, "sent again: 1\n")
    assert result.stderr.splitlines() == [
        f"webhooks: dead letter {cut} was too large to be kept whole: it cannot be sent again",
        f"webhooks: there is no dead letter {missing}; `webhooks dead list` shows them",
    ]
    assert store.read_ids() == [cut]
    assert count_waiting() == 1
    assert run("drop", str(missing), "--yes").exit_code == 1
    assert run("show", str(missing)).exit_code == 1


def test_letter_stays_when_the_broker_is_away(
    run: Callable[..., Result], store: DeadLetterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store)
    monkeypatch.setitem(app.conf, "broker_url", "redis://127.0.0.1:9")
    result = run("resend", "--all")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("webhooks: the broker cannot be used")
    assert result.stderr.count("\n") == 1
    assert store.count(10) == 1


def test_letter_is_sent_again_by_a_broker_that_hung_meanwhile(
    run: Callable[..., Result], store: DeadLetterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second try once had no new channel to publish with, and ended in a traceback."""
    put(store)
    server = Server("valkey", servers.valkey_command, servers.valkey_url, tmp_path)
    publish, errors = DeadLetter.publish, []

    def hang_once(letter: DeadLetter, channel: Any) -> None:
        if errors:
            publish(letter, channel)
            return
        server.pause()
        try:
            publish(letter, channel)
        except Exception as error:
            errors.append(error)
            raise
        finally:
            server.resume()

    monkeypatch.setattr(DeadLetter, "publish", hang_once)
    # A try may take half of it.
    monkeypatch.setattr(dead_cmd, "_BROKER_TIMEOUT_S", 10.0)
    try:
        server.start()
        monkeypatch.setitem(app.conf, "broker_url", server.url)
        result = run("resend", "--all")
        assert len(errors) == 1
        assert (result.exit_code, result.stdout) == (0, "sent again: 1\n"), result.output
        assert count_waiting() >= 1
        assert store.count(10) == 0
    finally:
        server.discard()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["resend"], "give ids, or --all"),
        (["drop", str(ObjectId()), "--all"], "give ids, or --all"),
        (["drop", str(ObjectId()), "--reason", "defect"], "--reason goes with --all"),
        (["list", "--reason", "nonsense"], "is not one of"),
        (["show", "x"], "24 hexadecimal digits"),
    ],
    ids=["neither", "both", "reason_alone", "reason", "id"],
)
def test_usage_error(run: Callable[..., Result], args: list[str], said: str) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_check_warns_of_dead_letters(run: Callable[..., Result], store: DeadLetterStore) -> None:
    put(store)
    report = json.loads(CliRunner().invoke(cli, ["check", "--json"]).stdout)
    (warning,) = report["database"]["warnings"]
    assert warning.startswith("1 dead letter: ")
