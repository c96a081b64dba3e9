"""What a service calls, without a broker and without MongoDB."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from importlib import metadata
from typing import Any

import pytest
from celery import group

from tests.lab.samples_data import read_sample
from webhooks import COTEvent, InvalidEvent, accept, accept_async, deliver
from webhooks.errors import NotInstalled, StoreUnavailable
from webhooks.producer import extras
from webhooks.testing import recorded_events

EVENT = read_sample("event-task-create")
NO_DATABASE: Any = None

#: Heavy, and not needed to hand an event in, or not before the first one is.
NOT_IMPORTED = {"requests", "urllib3", "cryptography", "certifi", "rich", "pymongo", "redis"}
#: Parts of the worker, and what loads them.
WORKER = {"webhooks.worker", "webhooks.delivery", "webhooks.sender", "webhooks.transport.channel", "webhooks.cli"}


def test_importing_loads_nothing_of_the_worker():
    code = "import sys, webhooks; webhooks.deliver; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & WORKER
    assert not {name.partition(".")[0] for name in loaded} & NOT_IMPORTED


# ── Recording ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_way_in_is_recorded():
    with recorded_events() as events:
        ids = [
            deliver.delay(EVENT).id,
            deliver.delay(event=COTEvent.model_validate(EVENT)).id,
            deliver.apply_async([EVENT], countdown=5, task_id="mine").id,
            *deliver.delay_many(iter([EVENT, EVENT])),
            accept(EVENT, NO_DATABASE),
            asyncio.run(accept_async(EVENT, NO_DATABASE)),
        ]
        group(deliver.s(EVENT)).apply_async()
        thread = threading.Thread(target=deliver.delay, args=(EVENT,))
        thread.start()
        thread.join()
    assert [one.event_id for one in events[:-2]] == ids
    assert ids[2] == "mine"
    assert events[2].options == {"countdown": 5}
    assert [one.function for one in events] == ["deliver"] * 5 + ["accept"] * 2 + ["deliver"] * 2
    assert all(one.event == EVENT for one in events)


def test_what_is_recorded_is_what_receivers_would_get():
    event = {**EVENT, "company": COTEvent.model_validate(EVENT).company}
    with recorded_events() as events:
        deliver.delay(event)
        event["data"] = None
    assert events[0].event == EVENT


@pytest.mark.parametrize(
    "call",
    [
        deliver.delay,
        lambda event: deliver.apply_async((event,)),
        lambda event: deliver.delay_many([EVENT, event]),
        lambda event: accept(event, NO_DATABASE),
        lambda event: asyncio.run(accept_async(event, NO_DATABASE)),
    ],
    ids=["delay", "apply_async", "delay_many", "accept", "accept_async"],
)
def test_bad_event_is_refused_and_not_recorded(call: Any):
    with recorded_events() as events:
        with pytest.raises(InvalidEvent, match="type: is missing"):
            call({})
        assert not events


def test_wrong_arguments_are_celerys_error():
    with recorded_events() as events:
        for arguments in ((), (EVENT, EVENT)):
            with pytest.raises(TypeError):
                deliver.delay(*arguments)
        assert not events


def test_inner_recording_ends_before_the_outer_one():
    with recorded_events() as outer:
        with recorded_events() as inner:
            deliver.delay(EVENT)
        deliver.delay(EVENT)
    assert (len(outer), len(inner)) == (1, 1)


# ── Asynchronous clients, and what is not installed ─────────────────────────────────────────────────────────────────


class MotorDatabase:
    """As the other asynchronous driver has it, which tells itself by its module alone."""

    __module__ = "motor.motor_asyncio"


def test_accept_names_the_other_function_to_who_gives_it_an_asynchronous_database():
    with pytest.raises(TypeError, match="await accept_async"):
        accept(EVENT, MotorDatabase())  # pyright: ignore[reportArgumentType]


def test_commit_without_django_is_said_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "django", None)
    monkeypatch.setitem(sys.modules, "django.db.transaction", None)
    with recorded_events() as events:
        with pytest.raises(NotInstalled, match="Django is not installed"):
            deliver.delay_on_commit(EVENT)
        assert not events


REQUIREMENTS = [
    "celery>=5.5,<6",
    'celery>=5.7,<5.8; extra == "worker"',
    'nosuchpackage>=1; extra == "worker"',
    'pytest<1; extra == "worker"',
    'another; extra == "test"',
]


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metadata, "requires", lambda _: REQUIREMENTS)
    with pytest.raises(NotInstalled) as caught:
        extras.require("worker", "a worker")
    installed = metadata.version("pytest")
    assert str(caught.value) == (
        "a worker needs packages that a producer does not: pip install 'celery-webhooks[worker]' "
        f"(missing: nosuchpackage; pytest is {installed}, not <1)"
    )


def test_checkout_that_was_not_installed_is_not_asked(monkeypatch: pytest.MonkeyPatch):
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    extras.require("worker")


CONFIRMS = """
import json, sys
from webhooks import app, deliver

def publish(producer, name, message, **options):
    print(name, options["confirm_timeout"])

app.amqp.__dict__["send_task_message"] = publish
event = json.loads(sys.argv[1])
deliver.delay(event)
"""


def test_rabbitmq_that_does_not_confirm_is_not_waited_for_without_end():
    env = {**os.environ, "WEBHOOKS_BROKER_URL": "amqp://127.0.0.1:9//", "WEBHOOKS_PUBLISH_TIMEOUT_S": "3"}
    argv = [sys.executable, "-c", CONFIRMS, json.dumps(EVENT)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["webhooks.deliver", "1.5"]


# ── Eager ───────────────────────────────────────────────────────────────────────────────────────────────────────────

EAGER = """
import json, os, sys, time
from webhooks import app, deliver
from webhooks.testing import recorded_events
app.conf.task_always_eager = True
event = json.loads(sys.argv[1])
started = time.monotonic()
calls = (lambda: deliver.delay(event), lambda: deliver.delay_many([event]), lambda: deliver(event))
for call in calls:
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
print(f"{time.monotonic() - started:.1f} s")
with recorded_events() as events:
    deliver.delay(event)
    deliver.delay_many([event])
print(f"{len(events)} recorded")
"""


def test_eager_without_mongodb_fails_soon_and_says_what_else_to_do():
    """It waited for 12 s each, and went on as if nothing had been: a service's test passed."""
    env = {**os.environ, "WEBHOOKS_MONGODB_URL": "mongodb://127.0.0.1:9/webhooks"}
    argv = [sys.executable, "-c", EAGER, json.dumps(EVENT)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    *lines, seconds, recorded = done.stdout.splitlines()
    assert len(lines) == 3, lines
    assert float(seconds.split()[0]) < 10, "three calls, each of which takes a second"
    assert recorded == "2 recorded"
    for line in lines:
        assert line.startswith(f"{StoreUnavailable.__name__} MongoDB is not reachable")
        assert "webhooks.testing.recorded_events()" in line
