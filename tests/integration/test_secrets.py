"""``webhooks secret`` and ``webhooks header`` on a real MongoDB: what is stored, what is shown, and to whom."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pymongo.database import Database

from tests.lab.commands import add
from tests.lab.logs import COMPANY
from webhooks.cli import cli
from webhooks.config import get_settings
from webhooks.models import now, parse_webhook
from webhooks.rules.encryption import Use, Vault, new_key
from webhooks.rules.signing import new_secret, public_key

KEY = new_key()

Documents = Database[dict[str, Any]]
Run = Callable[..., Result]


@pytest.fixture
def run(redis_url: str, database: Documents, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, with a key; ``stdin`` is what it reads."""
    host, port = database.client.address or ("", 0)
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", redis_url)
    monkeypatch.setenv("WEBHOOKS_MONGODB_URL", f"mongodb://{host}:{port}/{database.name}")
    monkeypatch.setenv("WEBHOOKS_ENCRYPTION_KEY", KEY)

    def call(*args: str, stdin: str = "", key: str = KEY) -> Result:
        monkeypatch.setenv("WEBHOOKS_ENCRYPTION_KEY", key)
        get_settings.cache_clear()
        return CliRunner().invoke(cli, args, input=stdin)

    return call


def good(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def stored(database: Documents) -> Any:
    (document,) = database["webhooks"].find()
    return parse_webhook(document)


def secrets_of(database: Documents, key: str = KEY) -> list[str]:
    webhook = stored(database)
    return [Vault([key]).open(secret.sealed, webhook.id, Use.SIGN) for secret in webhook.secrets]


def test_webhook_that_is_added_gets_a_secret_that_is_shown_once(run: Run, database: Documents):
    trigger = ["--trigger", "create-edit-delete-task", "--url", "https://www.server.example"]
    output = good(run("add", "--company", COMPANY, "--code", "one", *trigger))
    (text,) = secrets_of(database)
    assert output.count(text) == 1
    assert text not in str(list(database["webhooks"].find()))
    looks = ["show one", "show one --json", "list", "list --json", "secret list one", "secret list one --json"]
    for look in [*looks, "edit one --name x", "edit one --name y --json"]:
        shown = good(run(*look.split()))
        assert text not in shown
        assert stored(database).secrets[0].sealed not in shown


def test_json_of_a_new_webhook_has_its_secret(run: Run, database: Documents):
    trigger = ["--trigger", "create-edit-delete-task", "--url", "https://www.server.example"]
    added = json.loads(good(run("add", "--company", COMPANY, "--code", "one", *trigger, "--json")))
    assert [added["secret"]] == secrets_of(database)


@pytest.mark.parametrize(("more", "key"), [(["--unsigned"], KEY), ([], "")], ids=["asked for", "no key"])
def test_webhook_without_a_secret_says_so(run: Run, database: Documents, more: list[str], key: str):
    trigger = ["--trigger", "create-edit-delete-task", "--url", "https://www.server.example"]
    result = run("add", "--company", COMPANY, "--code", "one", *trigger, *more, key=key)
    assert "signed  no" in good(result)
    assert ("WEBHOOKS_ENCRYPTION_KEY is not set" in result.stderr) is (not key)
    assert stored(database).secrets == ()


def test_rotation_keeps_the_old_one_for_the_overlap(run: Run, database: Documents):
    webhook_id = add(run)
    (old,) = secrets_of(database)
    rotated = json.loads(good(run("secret", "rotate", webhook_id, "--overlap", "2h", "--json")))
    assert secrets_of(database) == [rotated["secret"], old]
    new_one, old_one = stored(database).secrets
    assert new_one.expiresAt is None
    assert timedelta(hours=1.9) < old_one.expiresAt - now() < timedelta(hours=2)
    assert database["webhooks"].count_documents({"secrets.expiresAt": {"$type": "date"}}) == 1
    # Another one does not make the oldest last longer.
    good(run("secret", "rotate", webhook_id, "--overlap", "9d"))
    assert stored(database).secrets[2].expiresAt == old_one.expiresAt
    assert "signs until" in good(run("secret", "list", webhook_id))
    good(run("secret", "rotate", webhook_id, "--overlap", "0s"))
    assert len(secrets_of(database)) == 1


def test_schemes_rotate_by_themselves_and_public_keys_are_shown(run: Run, database: Documents):
    webhook_id = add(run)
    assert "whpk_" in good(run("secret", "rotate", webhook_id, "--scheme", "v1a", "--overlap", "0s"))
    private, symmetric = secrets_of(database)
    assert symmetric.startswith("whsec_")
    assert good(run("secret", "public-key", webhook_id)) == public_key(private) + "\n"
    assert "whsk_" not in good(run("secret", "list", webhook_id))
    again = json.loads(good(run("secret", "rotate", webhook_id, "--scheme", "v1a", "--json")))
    assert ("secret" in again, again["public"][:5]) == (False, "whpk_")
    result = run("secret", "rotate", webhook_id, "--scheme", "v1a", "--stdin", stdin=new_secret() + "\n")
    assert (result.exit_code, "is one of v1, not of v1a" in result.output) == (2, True)


def test_secret_of_ones_own_is_read_from_standard_input(run: Run, database: Documents):
    webhook_id, mine = add(run, "one", COMPANY, "--unsigned"), new_secret()
    for more in ([], ["--json"]):
        shown = good(run("secret", "rotate", webhook_id, "--stdin", "--overlap", "0s", *more, stdin=mine + "\n"))
        assert mine not in shown, "who typed it has it"
        assert secrets_of(database) == [mine]
    result = run("secret", "rotate", webhook_id, "--stdin", stdin="whsec_hunter2\n")
    assert result.exit_code == 1
    assert "hunter2" not in result.output
    assert secrets_of(database) == [mine]


def test_secret_that_leaked_is_removed_at_once_but_not_the_last_by_mistake(run: Run, database: Documents):
    webhook_id = add(run)
    good(run("secret", "rotate", webhook_id))
    new_one, old_one = stored(database).secrets
    good(run("secret", "remove", webhook_id, old_one.id))
    assert [secret.id for secret in stored(database).secrets] == [new_one.id]
    result = run("secret", "remove", webhook_id, new_one.id)
    assert (result.exit_code, "the last that signs" in result.output) == (1, True)
    good(run("secret", "remove", webhook_id, new_one.id, "--unsigned"))
    assert stored(database).secrets == ()
    assert run("secret", "remove", webhook_id, "nosuch").exit_code == 1


def test_removal_leaves_no_webhook_that_stops_when_an_overlap_ends(run: Run, database: Documents):
    webhook_id = add(run)
    good(run("secret", "rotate", webhook_id))
    leaked = stored(database).secrets[0].id
    result = run("secret", "remove", webhook_id, leaked)
    assert (result.exit_code, "the others expire" in result.output) == (1, True)
    good(run("secret", "remove", webhook_id, leaked, "--unsigned"))
    assert stored(database).secrets == ()


def test_rotation_with_another_key_is_refused_as_nothing_could_be_sent(run: Run, database: Documents):
    webhook_id = add(run)
    (before,) = stored(database).secrets
    lost = new_key()
    result = run("secret", "rotate", webhook_id, key=lost)
    assert (result.exit_code, f"secret {before.id} cannot be opened" in result.output) == (1, True)
    assert stored(database).secrets == (before,)
    # What the error says to do works.
    good(run("secret", "remove", webhook_id, before.id, "--unsigned", key=lost))
    good(run("secret", "rotate", webhook_id, key=lost))
    assert len(secrets_of(database, lost)) == 1


@pytest.mark.parametrize("overlap", ["", "1", "-1h", "999999999w", "999999w"])
def test_bad_overlap_is_refused_in_words(run: Run, database: Documents, overlap: str):
    result = run("secret", "rotate", add(run), "--overlap", overlap)
    assert (result.exit_code, "is no span of time" in result.output) == (2, True)
    assert len(stored(database).secrets) == 1


def test_check_counts_webhooks_whose_secrets_do_not_open(run: Run):
    webhook_id = add(run)
    good(run("header", "set", webhook_id, "X-Key", "--secret", stdin="x\n"))
    add(run, "unsigned", COMPANY, "--unsigned")
    assert "does not open" not in run("check").output
    assert "1 webhook has secrets that WEBHOOKS_ENCRYPTION_KEY here does not open" in run("check", key=new_key()).output


@pytest.mark.parametrize(
    "fields",
    [
        {"secrets": {"sealed": "hunter2"}},
        {"secrets": ["hunter2"]},
        {"secrets": [{"id": "1", "key": "hunter2"}]},
        {"headers": ["X: hunter2"]},
        {"headers": [{"name": "X-Key", "sealed": "hunter2"}]},
        {"headers": "hunter2"},
    ],
)
def test_what_somebody_stored_as_a_secret_is_not_shown(run: Run, database: Documents, fields: dict[str, Any]):
    webhook_id = add(run, "one", COMPANY, "--unsigned")
    database["webhooks"].update_one({}, {"$set": fields})
    for look in (["show", webhook_id], ["show", webhook_id, "--json"], ["list", "--json"], ["list"]):
        assert "hunter2" not in run(*look).output


def test_rotation_is_refused_when_somebody_else_was_faster(run: Run, database: Documents, monkeypatch: Any):
    webhook_id = add(run)
    rotate = new_secret

    def slow(scheme: Any) -> str:
        database["webhooks"].update_one({}, {"$set": {"secrets": []}})
        return rotate(scheme)

    monkeypatch.setattr("webhooks.cli.secret_cmd.new_secret", slow)
    result = run("secret", "rotate", webhook_id)
    assert (result.exit_code, "has changed meanwhile" in result.output) == (1, True)
    assert stored(database).secrets == ()


def test_key_is_changed_in_three_steps(run: Run, database: Documents):
    webhook_id, new = add(run), new_key()
    good(run("header", "set", webhook_id, "Authorization", "--secret", stdin="Bearer x\n"))
    good(run("header", "set", webhook_id, "X-Open", "y"))
    (before,) = secrets_of(database)
    assert good(run("secret", "reseal", key=f"{new},{KEY}")) == "sealed again: 2\n"
    assert secrets_of(database, new) == [before]
    sealed = stored(database).headers[0].sealed
    assert Vault([new]).open(sealed, stored(database).id, Use.HEADER) == "Bearer x"
    result = run("secret", "reseal", key=KEY)
    assert (result.exit_code, "is unchanged" in result.output) == (1, True)
    assert run("secret", "reseal", key="").exit_code == 1


def test_key_that_is_none_is_named_and_not_repeated(run: Run):
    result = run("list", key="hunter2")
    assert result.exit_code == 1
    assert "WEBHOOKS_ENCRYPTION_KEY" in result.output
    assert "hunter2" not in result.output
    assert len(good(run("secret", "new-key")).strip()) == 44


def test_header_is_set_shown_and_removed(run: Run, database: Documents):
    webhook_id = add(run)
    good(run("header", "set", webhook_id, "X-Tenant", "a b"))
    good(run("header", "set", webhook_id, "Authorization", "--secret", stdin="Bearer hunter2\n"))
    good(run("header", "set", webhook_id, "x-tenant", "c"))
    assert good(run("header", "list", webhook_id)) == "Authorization  secret\nx-tenant       c\n"
    assert "hunter2" not in str(list(database["webhooks"].find())) + good(run("show", webhook_id, "--json"))
    good(run("header", "remove", webhook_id, "authorization"))
    assert [header.name for header in stored(database).headers] == ["x-tenant"]
    assert run("header", "remove", webhook_id, "nosuch").exit_code == 1


@pytest.mark.parametrize(
    ("args", "stdin"),
    [
        (["Host", "x"], ""),
        (["X-Key", "a\r\nb"], ""),
        (["X-Key"], ""),
        (["X-Key", "hunter2", "--secret"], ""),
        (["X-Key", "--secret"], "hunter2\thunter2\x7f\n"),
        (["X-Key", "--secret"], ""),
    ],
)
def test_bad_header_is_refused_in_words(run: Run, database: Documents, args: list[str], stdin: str):
    webhook_id = add(run)
    result = run("header", "set", webhook_id, *args, stdin=stdin)
    assert result.exit_code in (1, 2)
    assert result.output.startswith("webhooks: ")
    assert "hunter2" not in result.output
    assert stored(database).headers == ()
