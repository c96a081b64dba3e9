"""What somebody meets who tries this on one machine: refusals name their setting, and workers' settings count."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.acceptance.conftest import Stack
from tests.lab.pages import README, ROOT, blocks, section
from tests.lab.receiver import Receiver
from tests.lab.worker import wait_until
from webhooks.local import servers as local_servers
from webhooks.local.processes import kill_group, spawn
from webhooks.rules.encryption import fingerprint, new_key
from webhooks.rules.signing import sign

COMPANY = "625bcbdcc9a8e3a86dbf041c"
SAMPLE = ROOT / "webhooks/local/demo/events/task-create.json"
BODY = b'{"type": "COTNote", "event": "edit"}'
ADD = ["add", "--company", COMPANY, "--code", "one", "--trigger", "create-edit-delete-task"]

pytestmark = pytest.mark.timeout(180)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(stack: Stack) -> Run:
    """Run the command in a terminal of its own, with only the servers set."""
    servers = {name: stack.settings[name] for name in ("WEBHOOKS_BROKER_URL", "WEBHOOKS_MONGODB_URL")}

    def run(*arguments: str, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
        return run_in({**servers, **settings}, *arguments, stdin=stdin)

    return run


def run_in(settings: dict[str, str], *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "webhooks", *arguments]
    env = {**os.environ, **settings}
    return subprocess.run(argv, env=env, input=stdin, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_notes_judge_by_the_workers_settings(stack: Stack, run: Run):
    with Receiver() as receiver:
        url = f"http://localhost:{receiver.port}/"
        worker = stack.start_worker(WEBHOOKS_ALLOWED_NETWORKS="")
        done = run(*ADD, "--unsigned", "--url", url, WEBHOOKS_ALLOWED_NETWORKS="127.0.0.0/8")
        assert done.returncode == 0
        [note] = done.stderr.splitlines()
        assert "its attempts fail at worker0@test: address not allowed: localhost (loopback); " in note
        assert "WEBHOOKS_ALLOWED_NETWORKS=127.0.0.0/8,::1/128, or `webhooks up --allow-loopback`" in note
        done = run("send", str(SAMPLE), WEBHOOKS_ALLOWED_NETWORKS="127.0.0.0/8")
        assert "webhook one" in done.stderr
        assert "WEBHOOKS_ALLOWED_NETWORKS=127.0.0.0/8" in done.stderr
        log = stack.logs(1)[0]
        assert log["response"] == f"address not allowed: localhost:{receiver.port}", "customers read it"
        assert "WEBHOOKS_ALLOWED_NETWORKS" in worker.log()
        assert "not_allowed: the workers' WEBHOOKS_ALLOWED_NETWORKS" in run("logs").stderr
        worker.stop()

        stack.start_worker(WEBHOOKS_ALLOWED_NETWORKS="127.0.0.0/8,::1/128")
        done = run("edit", "one", "--url", url)
        assert (done.returncode, done.stderr) == (0, "")
        assert run("send", str(SAMPLE)).stderr == ""


def test_notes_judge_by_the_terminal_where_no_worker_answers(run: Run):
    done = run(*ADD, "--unsigned", "--url", "http://10.1.2.3:6379/")
    assert "no worker runs; with this terminal's settings its attempts fail: port 6379" in done.stderr
    assert "WEBHOOKS_ALLOWED_PORTS" in done.stderr
    done = run("edit", "one", "--url", "http://10.1.2.3/")
    assert "10.1.2.3 (private); start workers with WEBHOOKS_ALLOWED_NETWORKS=10.1.2.3/32" in done.stderr


def test_send_says_that_nobody_wants_the_event(run: Run):
    done = run("send", str(SAMPLE))
    assert done.returncode == 0
    assert f"no active webhook matches it; `webhooks list --company {COMPANY}`" in done.stderr


@pytest.mark.slow
def test_check_says_which_worker_differs_in_what(stack: Stack, run: Run):
    same, other = new_key(), new_key()
    stack.start_worker(WEBHOOKS_ENCRYPTION_KEY=same, WEBHOOKS_ALLOWED_NETWORKS="", WEBHOOKS_RETRY_DELAY_S="30")
    stack.start_worker(WEBHOOKS_ENCRYPTION_KEY=other, WEBHOOKS_ALLOWED_PORTS="443,8000-8010", WEBHOOKS_MAX_RETRIES="1")
    done = run("check", "--json", WEBHOOKS_ENCRYPTION_KEY=same)
    key_differs = f"WEBHOOKS_ENCRYPTION_KEY is of fingerprint {fingerprint(other)} there"
    first, second = json.loads(done.stdout)["workers"]
    assert first["differences"] == []
    assert second["differences"] == [
        "WEBHOOKS_ALLOWED_NETWORKS is 127.0.0.0/8 there, not set here",
        "WEBHOOKS_ALLOWED_PORTS is 443,8000-8010 there, not set here",
        f"{key_differs}, of fingerprint {fingerprint(same)} here",
        "WEBHOOKS_RETRY_DELAY_S is 1 there, 30 here",
        "WEBHOOKS_MAX_RETRIES is 1 there, 3 here",
    ]
    done = run("check")
    assert f"worker1@test: {key_differs}, not set here" in done.stdout
    assert done.returncode == 0
    assert same not in done.stdout + done.stderr
    assert other not in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["add", "rotate", "header"])
@pytest.mark.slow
def test_nothing_is_sealed_with_a_key_that_workers_lack(stack: Stack, run: Run, command: str):
    key, theirs = new_key(), new_key()
    done = run(*ADD, "--unsigned", "--url", "https://hooks.example.com/")
    assert done.returncode == 0, done.stderr
    stack.start_worker(WEBHOOKS_ENCRYPTION_KEY=theirs)
    seals = {
        "add": [*ADD[:4], "two", *ADD[5:], "--url", "https://hooks.example.com/"],
        "rotate": ["secret", "rotate", "one"],
        "header": ["header", "set", "one", "X-Key", "--secret"],
    }[command]
    done = run(*seals, WEBHOOKS_ENCRYPTION_KEY=key)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"fingerprint {fingerprint(key)}) is not that of worker0@test" in done.stderr
    assert f"has another one (fingerprint {fingerprint(theirs)})" in done.stderr
    assert "set the same key in both" in done.stderr
    assert not stack.database["webhooks"].find_one({"$or": [{"secrets.0": {"$exists": 1}}, {"code": "two"}]})
    done = run(*seals, stdin="value\n", WEBHOOKS_ENCRYPTION_KEY=theirs)
    assert done.returncode == 0, done.stderr


def test_quick_start_of_the_readme(tmp_path: Path, redis_url: str, mongodb_url: str):
    """The three terminals of the README as they stand there, but for ports and the installation."""
    port = local_servers.free_port()
    servers = {
        "WEBHOOKS_BROKER_URL": local_servers.valkey_url(local_servers.free_port()),
        "WEBHOOKS_MONGODB_URL": local_servers.mongodb_url(local_servers.free_port()),
    }
    env = {**os.environ, **servers, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    scripts = [script.replace("8000", str(port)) for script in blocks(section(README.read_text(), "Quick start"), "sh")]
    up_script, receiver_script, send_script = scripts
    up_script = f"exec {up_script.strip()} --flower-port={local_servers.free_port()}"
    receiver_script = receiver_script.replace("pip install", "python -c 'import sys; __import__(sys.argv[1])'")
    logs = [tmp_path / name for name in ("up.log", "receiver.log")]

    def start(script: str, log_path: Path) -> subprocess.Popen[bytes]:
        with log_path.open("wb") as log:
            return spawn(["bash", "-e", "-c", script], env=env, cwd=tmp_path, stdout=log)

    def read(log_path: Path, words: str) -> str:
        wait_until(lambda: words in log_path.read_text(), f"{words!r} in {log_path.read_text()}", 90)
        return log_path.read_text()

    up = start(up_script, logs[0])
    terminals = [up]
    try:
        banner = read(logs[0], " ready.")
        assert "Allowed   requests to public addresses and 127.0.0.0/8, ::1/128" in banner
        done = run_in({**servers, "WEBHOOKS_ENCRYPTION_KEY": new_key()}, *ADD, "--url", f"http://127.0.0.1:{port}/")
        assert done.returncode == 1
        assert "`webhooks up` keeps its key in encryption.key in its data folder" in done.stderr
        terminals.append(start(receiver_script, logs[1]))
        [secret] = re.findall(r"^secret *(whsec_\S+)", read(logs[1], "shown only now"), re.MULTILINE)
        wait_until(lambda: not local_servers.is_free(port), f"listening: {logs[1].read_text()}")
        sent = subprocess.run(
            ["bash", "-e", "-c", send_script], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (sent.returncode, sent.stderr) == (0, "")
        assert "received COTNote edit" in read(logs[1], '"POST / HTTP/1.1" 200')
        wait_until(lambda: "200 success" in run_in(servers, "logs").stdout, "logged as a success")
        # A forged request is refused, and the work of a repeat is not done again.
        assert post(port, {"webhook-id": "msg_1"}) == 401
        at = int(time.time())
        signed = {
            "webhook-id": "msg_1",
            "webhook-timestamp": str(at),
            "webhook-signature": sign([secret], "msg_1", at, BODY),
        }
        assert [post(port, signed), post(port, signed)] == [200, 200]
        assert logs[1].read_text().count("received") == 2
    finally:
        up.terminate()
        try:
            up.wait(60)
        finally:
            for terminal in terminals:
                kill_group(terminal)
                terminal.wait()


def post(port: int, headers: dict[str, str]) -> int:
    """Send a request by hand, and return its status."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/", BODY, headers)
        return connection.getresponse().status
    finally:
        connection.close()
