"""What a service does with the bare package; run by `tests.producers` in other environments than our own."""

import asyncio
import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pymongo
import pytest

import webhooks
from webhooks import InvalidEvent, accept, accept_async, deliver
from webhooks.errors import NotInstalled
from webhooks.testing import recorded_events

MARK = os.environ["MARK"]
BIN = Path(sys.executable).parent
HAS_DJANGO = find_spec("django") is not None

#: Heavy, and not needed to hand an event in, or not before the first one is.
NOT_IMPORTED = {"requests", "urllib3", "cryptography", "certifi", "rich", "pymongo", "redis"}


def event(what):
    return {
        "company": "625bcbdcc9a8e3a86dbf041c",
        "type": "COTTask",
        "event": "create",
        "createdAt": "2022-05-07T09:30:00.000Z",
        "data": {"_id": "62742b759d46b3000797f2aa", "x": f"{MARK} {what}"},
        "extraData": None,
    }


def run(*argv, **env):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **env})
    return done.returncode, done.stdout, done.stderr


def test_it_is_the_installed_package():
    assert "site-packages" in webhooks.__file__


def test_importing_is_cheap():
    code = "import sys, webhooks; webhooks.deliver; print(*{name.partition('.')[0] for name in sys.modules})"
    _, out, err = run(sys.executable, "-W", "error", "-c", code)
    assert not err
    assert not NOT_IMPORTED & set(out.split())


def test_events_are_queued():
    assert deliver.delay(event("delay")).id
    assert deliver.apply_async([event("apply_async")], countdown=1).id
    assert len(deliver.delay_many(event(f"many {number}") for number in range(300))) == 300


def test_events_are_accepted():
    with pymongo.MongoClient(os.environ["WEBHOOKS_MONGODB_URL"]) as client:
        assert accept(event("accept"), client["webhooks"])


@pytest.mark.skipif(not hasattr(pymongo, "AsyncMongoClient"), reason="this pymongo has no asynchronous client")
def test_events_are_accepted_asynchronously():
    async def hand_in():
        async with pymongo.AsyncMongoClient(os.environ["WEBHOOKS_MONGODB_URL"]) as client:
            with pytest.raises(TypeError, match="await accept_async"):
                accept(event("nothing"), cast("Any", client["webhooks"]))
            return await accept_async(event("accept_async"), client["webhooks"])

    assert asyncio.run(hand_in())


def test_bad_events_are_refused():
    with pytest.raises(InvalidEvent, match="type: is missing"):
        deliver.delay({})
    with pytest.raises(InvalidEvent, match=r"event 1 of those given: .*type: is missing"):
        deliver.delay_many([event("never"), {}])
    with pytest.raises(InvalidEvent, match="type: is missing"):
        accept({}, cast("Any", None))


@pytest.mark.skipif(not HAS_DJANGO, reason="there is no Django here")
def test_event_is_queued_when_djangos_transaction_commits():
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    import_module("django.conf").settings.configure(DATABASES={"default": database})
    import_module("django").setup()
    transaction = import_module("django.db.transaction")
    with recorded_events() as events:
        with transaction.atomic():
            deliver.delay_on_commit(event("rolled back"))
            transaction.set_rollback(True)
        assert not events
        with transaction.atomic():
            deliver.delay_on_commit(event("committed"))
            deliver.apply_async_on_commit([event("later")], countdown=5)
            assert not events
    assert [(one.event["data"]["x"], dict(one.options)) for one in events] == [
        (f"{MARK} committed", {}),
        (f"{MARK} later", {"countdown": 5}),
    ]
    with transaction.atomic():
        given = event("on commit")
        deliver.delay_on_commit(given)
        given["data"] = None  # what happened is what was handed in
        with pytest.raises(InvalidEvent):
            deliver.delay_on_commit({})


@pytest.mark.skipif(HAS_DJANGO, reason="there is a Django here")
def test_without_django_its_absence_is_said():
    with pytest.raises(NotInstalled, match="Django is not installed"):
        deliver.delay_on_commit(event("never"))


def test_events_are_recorded_in_tests():
    with recorded_events() as events:
        event_id = deliver.delay(event("recorded")).id
    assert [(one.event_id, one.event) for one in events] == [(event_id, event("recorded"))]


def test_what_needs_a_worker_says_so():
    for call in (deliver, lambda given: deliver.apply([given])):
        with pytest.raises(NotInstalled, match=r"pip install 'celery-webhooks\[worker\]'"):
            call(event("never"))


@pytest.mark.parametrize("argv", [["webhooks", "logs"], ["celery", "-A", "webhooks", "worker"]], ids=" ".join)
def test_commands_say_what_they_need_in_one_line(argv):
    code, out, err = run(BIN / argv[0], *argv[1:])
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "pip install 'celery-webhooks[worker]'" in err


CALLS = """
import json, sys, time
from kombu.exceptions import OperationalError
from webhooks import app, deliver
app.amqp  # loads the transport
event = json.loads(sys.argv[1])
for call in (lambda: deliver.delay(event), lambda: deliver.apply_async([event]), lambda: deliver.delay_many([event])):
    started = time.monotonic()
    try:
        call()
    except OperationalError:
        print(time.monotonic() - started)
"""


def test_wait_for_a_broker_that_is_away_is_bounded():
    settings = {"WEBHOOKS_BROKER_URL": "redis://127.0.0.1:9/0", "WEBHOOKS_PUBLISH_TIMEOUT_S": "1"}
    _, out, err = run(sys.executable, "-c", CALLS, json.dumps(event("never")), **settings)
    seconds = [float(line) for line in out.split()]
    assert len(seconds) == 3, err
    assert all(0.5 < one < 1.5 for one in seconds), seconds
