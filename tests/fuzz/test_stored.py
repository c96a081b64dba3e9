"""Documents that somebody else wrote, in each collection: nothing crashes, nobody else is harmed, nothing steers."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import DatetimeMS, ObjectId
from click.testing import CliRunner, Result
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from kombu.message import Message
from pymongo.database import Database
from pymongo.errors import WriteError

from tests.fuzz.hostile import BSON_TEXT, BSON_VALUES, UNSAFE, at_most, make_event, ruined
from tests.lab.logs import COMPANY, NOON, WEBHOOK_ID, make_attempt, make_log
from tests.lab.samples_data import read_sample
from webhooks.cli import cli
from webhooks.models import COTWebhook, now, parse_event
from webhooks.producer.app import app
from webhooks.producer.deliver import accept
from webhooks.rules.matching import match
from webhooks.store.deadletters import DeadLetter, DeadLetterStore, Reason
from webhooks.store.deliveries import Claim, Claimed, Delivery, DeliveryStore
from webhooks.store.leases import Leases
from webhooks.store.logs import LogQuery, LogStore
from webhooks.store.mongo import open_database
from webhooks.store.outbox import Outbox
from webhooks.store.webhooks import WebhookStore

Documents = Database[dict[str, Any]]

OTHER_COMPANY = ObjectId("625bcbdcc9a8e3a86dbf041d")
HOSTILE_RESPONSE = "\x1b[2J\x1b]0;title\x07 \x9b31m \u202e reversed\r\n\x00second\u2028line"

WEBHOOK = COTWebhook.model_validate(read_sample("webhook-task")).to_bson()
LOG = make_log(HOSTILE_RESPONSE, attempt=make_attempt()).to_bson()
LETTER = DeadLetter.make(
    Reason.DEFECT,
    "why",
    Message(
        body=b'[[{"a":"\x1b[2J"}],{},null]',
        content_type="application/json",
        content_encoding="utf-8",
        headers={"task": "webhooks.deliver", "id": "e1", "x": "\x1b[2J"},
        properties={"priority": 3},
        delivery_info={"exchange": "", "routing_key": "webhooks.deliver"},
    ),
    "w1",
).to_document()
ODD = BSON_VALUES | BSON_TEXT

_EXAMPLES = settings().max_examples
#: For what asks a real MongoDB, and for what opens a new connection to it each time, as each command does.
FEWER, FEWEST = settings(max_examples=_EXAMPLES // 3), settings(max_examples=_EXAMPLES // 5)


@pytest.fixture
def url(database: Documents) -> str:
    host, port = database.client.address or ("", 0)
    return f"mongodb://{host}:{port}/{database.name}"


@pytest.fixture
def ours(url: str, database: Documents) -> Any:
    """The database as our own processes open it."""
    opened = open_database(url, 10)
    with opened.client:
        yield opened


@pytest.fixture
def run(url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command in this process; it must end in order, and print nothing that steers a terminal."""
    monkeypatch.setenv("WEBHOOKS_MONGODB_URL", url)
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", redis_url)
    # That a command ends, and in what, is judged here; not how soon a busy machine's MongoDB answers.
    monkeypatch.setenv("WEBHOOKS_MONGODB_TIMEOUT_S", "60")
    # Celery reads its configuration once in a process, and a test before this one may have had it read.
    monkeypatch.setitem(app.conf, "broker_url", redis_url)

    def run(*arguments: str) -> Result:
        with at_most(20):
            result = CliRunner().invoke(cli, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in (0, 1), result.output
        assert not UNSAFE.search(result.output), repr(result.output)
        if "--json" in arguments:
            for line in result.stdout.splitlines():
                json.loads(line, parse_constant=pytest.fail)
        return result

    return run


def store(collection: Any, document: dict[str, Any]) -> None:
    """Write as somebody else does; what MongoDB itself refuses nobody can have written."""
    collection.delete_many({})
    try:
        collection.insert_one(document)
    except WriteError:
        assume(False)


# ── What operators see ──────────────────────────────────────────────────────────────────────────────────────────────


@FEWEST
@given(document=ruined(LOG, ODD) | ruined(LOG, ODD).map(lambda log: {**log, "_id": ObjectId()}), values=ODD)
@example(document={**LOG, "createdAt": DatetimeMS(10**15)}, values=1)
@example(document={**LOG, "event": {**LOG["event"], "data": {"n": float("nan")}}}, values=1)
def test_any_log_can_be_listed(
    run: Callable[..., Result], database: Documents, document: dict[str, Any], values: Any
) -> None:
    store(database["webhooklogs"], document)
    healthy = make_log("healthy", at=NOON - timedelta(days=1), attempt=make_attempt(reason=None)).to_bson()
    healthy["attempt"]["more"] = values
    database["webhooklogs"].insert_one(healthy)
    assert "healthy" in run("logs", "-n", "5").stdout
    assert "healthy" in run("logs", "--json").stdout
    run("logs", "--failed", "--company", COMPANY)
    run("logs", "--event", "e1", "--since", "2000-01-01")


@FEWEST
@given(document=ruined(WEBHOOK, ODD), key=BSON_TEXT)
@example(document={**WEBHOOK, "name": HOSTILE_RESPONSE, "_id": HOSTILE_RESPONSE}, key="a")
@example(document={**WEBHOOK, "more": DatetimeMS(10**15), "_id": None}, key="a")
def test_any_webhook_can_be_listed_and_shown(
    run: Callable[..., Result], database: Documents, document: dict[str, Any], key: str
) -> None:
    store(database["webhooks"], {**document, key.replace("\0", "") or "x": {"$ref": 5, "": float("inf")}})
    database["webhooklogs"].delete_many({})
    foreign = make_log("of somebody else", attempt=make_attempt(), webhook_id="6" * 24).to_bson()
    database["webhooklogs"].insert_many([LOG, {**foreign, "_id": ObjectId(), "company": OTHER_COMPANY}])
    for arguments in (["list", "--all"], ["list", "--all", "--json"]):
        run(*arguments)
    for reference in (WEBHOOK_ID, str(WEBHOOK["code"])):
        for arguments in (["show", reference], ["show", reference, "--json"], ["logs", "--webhook", reference]):
            assert "of somebody else" not in run(*arguments).output


@FEWEST
@given(document=ruined(LETTER, ODD))
@example(document={**LETTER, "envelope": "[]"})
@example(document={**LETTER, "envelope": '{"headers":{}}'})
@example(document={**LETTER, "body": "é", "body_is_base64": True})
@example(document={**LETTER, "text": HOSTILE_RESPONSE, "created_at": DatetimeMS(-(10**17))})
def test_any_dead_letter_can_be_listed_and_shown(
    run: Callable[..., Result], database: Documents, document: dict[str, Any]
) -> None:
    store(database["deadletters"], document)
    healthy = {**LETTER, "_id": ObjectId(), "text": "healthy"}
    database["deadletters"].insert_one(healthy)
    assert "healthy" in run("dead", "list").stdout
    run("dead", "list", "--json")
    letter_id = document.get("_id", LETTER["_id"])
    for shown in {str(letter_id), str(healthy["_id"])}:
        if ObjectId.is_valid(shown) and len(shown) == 24:
            run("dead", "show", shown)
            run("dead", "show", shown, "--json")


def test_dead_letters_are_sent_again_beside_one_that_was_changed(
    run: Callable[..., Result], database: Documents, redis_client: Any
) -> None:
    odd_header = json.loads(LETTER["envelope"])
    odd_header["headers"]["x"] = {"__type__": "nonsense", "__value__": 1}
    letters = [
        {**LETTER, "_id": ObjectId(), "envelope": "nonsense"},
        {**LETTER, "_id": ObjectId(), "body": 5},
        {**LETTER, "_id": ObjectId(), "envelope": json.dumps(odd_header), "times": 1},
        {**LETTER, "_id": ObjectId(), "times": 1},
    ]
    database["deadletters"].insert_many(letters)
    result = run("dead", "resend", "--all")
    assert result.stdout == "sent again: 2\n", result.output
    assert "envelope was changed or is missing" in result.stderr
    assert "body was changed or is missing" in result.stderr
    lanes: Any = redis_client.keys("webhooks.lane.webhooks.deliver/*")
    assert sum(redis_client.zcard(lane) for lane in lanes) == 2
    assert {letter["_id"] for letter in database["deadletters"].find()} == {letter["_id"] for letter in letters[:2]}


def test_more_broken_logs_than_asked_for_hide_no_other(ours: Documents, run: Callable[..., Result]) -> None:
    ours["webhooklogs"].insert_many([{"createdAt": NOON, "company": ObjectId(COMPANY)} for _ in range(30)])
    LogStore(ours).write([make_log("healthy", at=NOON - timedelta(hours=1), attempt=make_attempt())])
    assert [log.response for log in LogStore(ours).read(LogQuery(), 3)] == ["healthy"]
    assert "healthy" in run("logs", "-n", "1").stdout


@pytest.mark.parametrize("arguments", [["show", "\udcff"], ["logs", "--event", "\udcff"], ["logs", "-n", "9" * 30]])
def test_odd_command_line_is_refused_in_words(
    run: Callable[..., Result], arguments: list[str], database: Documents, url: str
) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 2
    assert result.stderr.startswith("webhooks: ")


# ── What workers read and write ─────────────────────────────────────────────────────────────────────────────────────


@FEWER
@given(document=ruined(WEBHOOK, ODD))
@example(document={**WEBHOOK, "_id": "6" * 24})
@example(document={**WEBHOOK, "company": [WEBHOOK["company"], OTHER_COMPANY]})
@example(document={**WEBHOOK, "more": DatetimeMS(10**15)})
def test_any_webhook_beside_a_healthy_one_changes_nothing_for_it(ours: Documents, document: dict[str, Any]) -> None:
    store(ours["webhooks"], document)
    healthy = {**WEBHOOK, "_id": ObjectId(), "code": "healthy"}
    foreign = {**WEBHOOK, "_id": ObjectId("6" * 24), "code": "foreign", "company": OTHER_COMPANY}
    ours["webhooks"].insert_many([healthy, foreign])
    webhooks = WebhookStore(ours)
    found = webhooks.of_company(WEBHOOK["company"])
    assert healthy["_id"] in [webhook.id for webhook in found]
    for webhook in found:
        assert webhook.company == WEBHOOK["company"]
        # What is looked up when the event is sent must be the same webhook, of the same company.
        again = webhooks.get(webhook.id)
        assert again is not None
        assert again.company == WEBHOOK["company"]
    for unusable in webhooks.unusable_of_company(WEBHOOK["company"]):
        assert unusable.id == document["_id"]
        assert not UNSAFE.search(unusable.label + unusable.reason)
        match(parse_event(read_sample("event-task-create"), 1_000_000), [unusable])


@FEWER
@given(value=ODD, field=st.sampled_from(["_id", "body", "queued", "accepted_at", "more"]), gone=st.booleans())
@example(value=5, field="body", gone=True)
@example(value=ObjectId(), field="_id", gone=False)
@example(value="x", field="queued", gone=False)
def test_any_document_in_the_outbox_leaves_the_others_to_be_queued(
    ours: Documents, value: Any, field: str, gone: bool
) -> None:
    ours["outbox"].delete_many({})
    document = {"_id": "e0", "body": "{}", "accepted_at": NOON, "queue_at": NOON, "queued": 0, field: value}
    if gone and field != "_id":
        del document[field]
    store(ours["outbox"], document)
    event_id = accept(make_event(), ours)
    outbox, later = Outbox(ours), now() + timedelta(seconds=10)
    due = outbox.find_due(later, 10)
    assert event_id in [event.event_id for event in due]
    assert all(isinstance(event.body, str) and isinstance(event.event_id, str) for event in due)
    outbox.note_queued(due, later, timedelta(seconds=100))
    assert outbox.find_due(later, 10) == []
    outbox.remove(event_id)


def test_outbox_is_not_blocked_by_many_documents_that_are_no_events(ours: Documents) -> None:
    ours["outbox"].insert_many([{"queue_at": NOON} for _ in range(20)])
    event_id = accept(make_event(), ours)
    outbox = Outbox(ours)
    seen: list[str] = []
    for _ in range(3):
        seen += [event.event_id for event in outbox.find_due(now() + timedelta(seconds=1), 10)]
    assert seen[:1] == [event_id]
    assert ours["outbox"].count_documents({}) == 21


def test_log_that_cannot_be_encoded_is_stored_without_its_event_and_keeps_no_other_from_being_stored(
    ours: Documents,
) -> None:
    # What a body holds that somebody put into the ledger by hand: our own parser refuses it.
    logs = [make_log(str(number), attempt=make_attempt()) for number in range(3)]
    logs[1].event.to_wire()["data"] = {"n": 2**70}
    found: list[dict[str, Any]] = []
    for _ in range(2):  # and once more, as after a lost answer
        assert LogStore(ours).write(logs) == {}
        found = list(ours["webhooklogs"].find().sort("response", 1))
        assert [(log["response"], log["attempt"]["event_cut"]) for log in found] == [
            ("0", False),
            ("1", True),
            ("2", False),
        ]
    assert found[1]["event"]["data"] is None


def test_event_with_a_key_id_is_logged(ours: Documents) -> None:
    log = make_log("ok", attempt=make_attempt())
    log.event.to_wire()["_id"] = "62685990d918fb5557f9f992"
    assert LogStore(ours).write([log]) == {}
    (found,) = LogStore(ours).read(LogQuery(), 1)
    assert found.event.to_json() == log.event.to_json()


# ── The ledger ──────────────────────────────────────────────────────────────────────────────────────────────────────

LEDGER_FIELDS = {
    "_id": "msg_ruined",
    "event_id": "e0",
    "webhook_id": ObjectId(WEBHOOK_ID),
    "company": ObjectId(COMPANY),
    "label": "COTTask create → x",
    "body": json.dumps(make_event()),
    "retry": 0,
    "due_at": NOON,
    "created_at": NOON,
}
#: Documents that are easily made with a shell, by their names.
RUINED_DELIVERIES: dict[str, dict[str, Any]] = {
    "retry_gone": {field: value for field, value in LEDGER_FIELDS.items() if field != "retry"},
    "label_gone": {field: value for field, value in LEDGER_FIELDS.items() if field != "label"},
    "event_gone": {field: value for field, value in LEDGER_FIELDS.items() if field not in ("event_id", "body")},
    "event_is_an_object": {**{f: v for f, v in LEDGER_FIELDS.items() if f != "body"}, "event_id": {"a": 1}},
    "webhook_gone": {field: value for field, value in LEDGER_FIELDS.items() if field != "webhook_id"},
    "retry_is_text": {**LEDGER_FIELDS, "retry": "0"},
    "body_is_an_object": {**LEDGER_FIELDS, "body": make_event()},
    "claim_is_text": {**LEDGER_FIELDS, "claim": "x"},
    "claim_without_end": {**LEDGER_FIELDS, "claim": {"until": DatetimeMS(10**15)}},
    "interrupted_is_text": {**LEDGER_FIELDS, "interrupted": "x"},
    "interrupted_by_nobody": {**LEDGER_FIELDS, "interrupted": [{}]},
    "due_beyond_the_calendar": {**LEDGER_FIELDS, "due_at": DatetimeMS(-(10**15))},
}


def make_delivery(number: int) -> Delivery:
    body = parse_event(make_event(), 100_000).to_json()
    ids: Any = {"webhook_id": ObjectId(WEBHOOK_ID), "company": ObjectId(COMPANY)}
    return Delivery(delivery_id=f"msg_{number}", event_id=f"e{number}", label="COTNote edit → x", body=body, **ids)


@pytest.mark.parametrize(
    "name",
    RUINED_DELIVERIES,
)
def test_sweep_goes_on_past_a_ruined_delivery(ours: Documents, name: str) -> None:
    ours["deliveries"].insert_one(RUINED_DELIVERIES[name])
    ledger = DeliveryStore(ours, claim_s=25, timeout_s=10)
    ledger.add([make_delivery(1)], datetime.now(UTC) - timedelta(hours=1))
    for _ in range(2):
        overdue = [one.delivery_id for one in ledger.find_overdue(datetime.now(UTC), 10)]
        assert "msg_1" in overdue
        ledger.postpone(overdue, datetime.now(UTC) - timedelta(minutes=1))


@pytest.mark.parametrize(
    "name",
    RUINED_DELIVERIES,
)
def test_claim_goes_on_past_a_ruined_delivery(ours: Documents, name: str) -> None:
    ours["deliveries"].insert_one(RUINED_DELIVERIES[name])
    ledger = DeliveryStore(ours, claim_s=25, timeout_s=10)
    ledger.add([make_delivery(1)], datetime.now(UTC))
    claims = [Claim("msg_ruined", 0, ObjectId()), Claim("msg_1", 0, ObjectId())]
    _, healthy = ledger.claim(claims)
    assert isinstance(healthy, Claimed)


@pytest.mark.parametrize("until", [datetime(9999, 1, 1, tzinfo=UTC), DatetimeMS(10**15)], ids=["9999", "beyond"])
def test_lease_that_somebody_made_endless_is_taken(ours: Documents, until: Any) -> None:
    ours["leases"].insert_one({"_id": "sweep", "owner": "nobody", "until": until})
    assert Leases(ours, "us").take_job("sweep", 10)


@FEWER
@given(document=ruined({"_id": "sweep", "owner": "nobody", "until": NOON}, BSON_VALUES.filter(lambda v: v == v)))
def test_any_lease_is_taken_or_left(ours: Documents, document: dict[str, Any]) -> None:
    store(ours["leases"], document)
    assert Leases(ours, "us").take_job("sweep", 10) in (True, False)


def test_two_events_with_one_message_id_do_not_share_a_body(ours: Documents) -> None:
    ledger = DeliveryStore(ours, claim_s=25, timeout_s=10)
    mine, other = (parse_event(make_event(company=owner), 100_000).to_json() for owner in (COMPANY, "6" * 24))
    for company, body, names in ((COMPANY, mine, "ab"), ("6" * 24, other, "cd")):
        ids: dict[str, Any] = {"webhook_id": ObjectId(), "company": ObjectId(company), "event_id": "chosen-by-producer"}
        ledger.add([Delivery(delivery_id=f"msg_{name}", label="x", body=body, **ids) for name in names], NOON)
    (claimed,) = ledger.claim([Claim("msg_a", 0, ObjectId())])
    assert isinstance(claimed, Claimed)
    assert claimed.delivery.body == mine


def test_dead_letters_are_written_beside_any_document(ours: Documents) -> None:
    ours["deadletters"].insert_one({"_id": LETTER["_id"], "times": 1})
    letters = DeadLetterStore(ours)
    message = Message(body=b"x", headers={"id": "e1"}, delivery_info=None, properties=None)
    letters.write(DeadLetter.make(Reason.UNREADABLE, "\x1b[2J", message, None))
    assert letters.count(10) == 2
