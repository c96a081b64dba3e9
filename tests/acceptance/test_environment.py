"""Variables of another Celery application beside ours decide nothing: in producers, workers and commands."""

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.acceptance.conftest import Stack
from tests.lab.receiver import Receiver
from tests.lab.samples_data import read_sample
from tests.lab.worker import wait_until

EVENT = read_sample("event-task-create")

#: A broker that nobody can reach, with a password that nobody may see.
ELSEWHERE = "redis://:secret@127.0.0.1:9/0"
#: All that Celery 5.7 puts before an app's options, and CELERY_CACHE_BACKEND, which is an option's old name.
OF_AN_APP = {
    "CELERY_BROKER_URL": ELSEWHERE,
    "CELERY_BROKER_READ_URL": ELSEWHERE,
    "CELERY_BROKER_WRITE_URL": ELSEWHERE,
    "CELERY_RESULT_BACKEND": ELSEWHERE,
    "CELERY_CACHE_BACKEND": "memory",
    "CELERY_CONFIG_MODULE": "no_such_module",
    "CELERY_LOADER": "no_such_module:Loader",
    "CELERY_CUSTOM_WORKER_POOL": "no_such_module:Pool",
}
#: The same under the names that the command `celery` knows besides.
OF_THE_COMMAND = {
    "BROKER_URL": ELSEWHERE,
    "RESULT_BACKEND": ELSEWHERE,
    "LOADER": "no_such_module:Loader",
    "CONFIG_MODULE": "no_such_module",
}
#: Options of `celery worker`.
OF_A_WORKER = {
    "CELERY_WORKER_QUEUES": "other",
    "CELERY_WORKER_EXCLUDE_QUEUES": "webhooks.deliver",
    "CELERY_WORKER_PURGE": "1",
    "CELERY_WORKER_POOL": "solo",
    "CELERY_WORKER_CONCURRENCY": "1",
    "CELERY_WORKER_AUTOSCALE": "2,1",
    "CELERY_WORKER_PREFETCH_MULTIPLIER": "100",
    "CELERY_WORKER_INCLUDE": "no_such_module",
}

PRODUCER = f"""
import webhooks
print(webhooks.deliver.delay({EVENT!r}).id)
"""
LOOK = """
from webhooks.producer.app import app
for one in (app.connection_for_write(), app.connection_for_read()):
    print(f"redis://{one.hostname}:{one.port}/{one.virtual_host}")
print(app.conf.broker_url, app.conf.broker_read_url, app.conf.broker_write_url)
print(type(app.loader).__name__, type(app.backend).__name__, app.conf.result_backend)
"""


def run(argv: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", OF_AN_APP)
def test_variable_does_not_lead_a_producer_elsewhere(name: str, stack: Stack):
    own = stack.redis_url
    done = run([sys.executable, "-c", LOOK], {**stack.settings, name: OF_AN_APP[name]})
    assert done.returncode == 0, done.stderr
    written_to, read_from, options, kinds = done.stdout.splitlines()
    assert (written_to, read_from) == (own, own)
    assert options == f"{own} {own} {own}"
    assert kinds == "AppLoader DisabledBackend None"


def test_event_of_a_producer_with_all_of_them_is_delivered(stack: Stack):
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        stack.start_worker()
        done = run([sys.executable, "-c", PRODUCER], {**stack.settings, **OF_AN_APP})
        assert done.returncode == 0, done.stderr
        stack.logs(1)
    assert len(receiver.requests) == 1


def test_own_app_of_a_producer_keeps_its_variables(stack: Stack):
    code = "import webhooks; from celery import Celery; print(Celery('own', broker='redis://own/0').conf.broker_url)"
    done = run([sys.executable, "-c", code], {**stack.settings, "CELERY_BROKER_URL": ELSEWHERE})
    assert done.stdout.strip() == ELSEWHERE


def test_worker_with_all_of_them_delivers_what_waits_and_says_what_has_no_effect(stack: Stack):
    everything: dict[str, Any] = {**OF_AN_APP, **OF_THE_COMMAND, **OF_A_WORKER}
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        stack.send_task(EVENT)  # before the worker starts, which must not purge it
        worker = stack.start_worker(**everything)
        stack.logs(1)
        assert len(receiver.requests) == 1
    log = worker.log()
    for name in [*OF_AN_APP, *OF_A_WORKER]:
        is_said = f"{name} has no effect" in log
        assert is_said is (name not in ("CELERY_CACHE_BACKEND", "CELERY_CUSTOM_WORKER_POOL")), name
    assert "concurrency: 8 (" in log
    assert "secret" not in log


def test_variable_that_decides_nothing_about_messages_is_obeyed(stack: Stack):
    log_path = stack.folder / "worker-log"
    worker = stack.start_worker(wait=False, CELERY_WORKER_LOGFILE=str(log_path))
    wait_until(lambda: log_path.exists() and " ready." in log_path.read_text(), "ready")
    assert "has no effect" not in log_path.read_text() + worker.log()


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["-b", ELSEWHERE], "WEBHOOKS_BROKER_URL"),
        (["--broker", ELSEWHERE], "WEBHOOKS_BROKER_URL"),
        (["--result-backend", ELSEWHERE], "logs in MongoDB"),
        (["--config", "no_such_module"], "Celery options of its own"),
    ],
)
@pytest.mark.parametrize("command", ["worker", "purge"])
def test_option_of_the_command_that_has_no_effect_is_refused(
    command: str, options: list[str], remedy: str, stack: Stack
):
    done = run([sys.executable, "-m", "celery", "-A", "webhooks", *options, command], stack.settings)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{options[0].replace('-b', '-b/') if options[0] == '-b' else options[0]}" in done.stderr
    assert remedy in done.stderr
    assert "secret" not in done.stderr
