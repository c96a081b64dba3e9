"""MongoDB's URL: options that would break a promise are refused in words, and what is decided reads the primary."""

from pathlib import Path

import pytest
from pymongo import ReadPreference
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from webhooks.errors import ENCODE_HINT, InvalidSettings
from webhooks.rules.mongodb_url import find_overruled, read_mongodb_url
from webhooks.store.mongo import open_database


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://host",
        " mongodb://host/db\n",
        "mongodb://user:p%40%3A%2Fw@a:1,b:2/db?replicaSet=rs&w=majority&journal=true&retryWrites=true",
        "mongodb://host/db?tz_aware=true&readConcernLevel=local&fsync=false",
        "mongodb://host/db?retryReads=false&maxPoolSize=10&wTimeoutMS=1000&compressors=zlib&directConnection=true",
        "mongodb://host/?authMechanismProperties=ENVIRONMENT:azure,TOKEN_RESOURCE:a%40b",
        "mongodb+srv://user:pw@cluster.example.com/db?authSource=admin",
    ],
)
def test_url_is_read(url: str):
    assert read_mongodb_url(url) == url.strip()


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("w=1", "w that is not majority: leave the option out"),
        ("w=0", "w that is not majority"),
        ("W=2", "W that is not majority"),
        ("journal=false", "journal that is not true"),
        ("fsync=true", "fsync that is not false"),
        ("retryWrites=false", "retryWrites that is not true"),
        ("readConcernLevel=available", "readConcernLevel that is not local"),
        ("readConcernLevel=majority", "readConcernLevel that is not local"),
        ("tz_aware=false", "tz_aware that is not true"),
        ("datetime_conversion=DATETIME_MS", "datetime_conversion that is not datetime_auto"),
        ("unicode_decode_error_handler=strict", "unicode_decode_error_handler that is not replace"),
        ("connect=true", "connect that is not false"),
        ("serverSelectionTimeoutMS=1", "leave it out, and set WEBHOOKS_MONGODB_TIMEOUT_S"),
        ("connectTimeoutMS=1", "leave it out, and set WEBHOOKS_MONGODB_TIMEOUT_S"),
        ("socketTimeoutMS=1", "leave it out, and set WEBHOOKS_MONGODB_TIMEOUT_S"),
        ("timeoutMS=1", "leave it out, and set WEBHOOKS_MONGODB_TIMEOUT_S"),
        ("a-b=secret", "an option that is not NAME=VALUE"),
        ("secret", "an option that is not NAME=VALUE"),
    ],
)
@pytest.mark.parametrize("before", ["", "retryReads=true&", "retryReads=true;"], ids=["alone", "after-&", "after-;"])
def test_option_that_breaks_a_promise_is_refused_by_its_name(option: str, reason: str, before: str):
    with pytest.raises(ValueError, match=r"^.+$") as raised:
        read_mongodb_url(f"mongodb://user:secret@host/db?{before}{option}")
    assert reason in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:27017",
        "redis://:secret@host",
        "mongodb://",
        "mongodb://user:secret@",
        "mongodb://user:sec@ret@host/db",
        "mongodb://user:sec:ret@host/db",
        "mongodb://user:sec/ret@host/db",
        "mongodb://user:sec?ret@host/db",
        "mongodb://user:sec%ret@host/db",
        "mongodb://user:sec ret@host/db",
    ],
)
def test_url_that_cannot_be_taken_apart_is_refused_without_repeating_it(url: str):
    with pytest.raises(ValueError, match=r"^.+$") as raised:
        read_mongodb_url(url)
    assert not any(part in str(raised.value) for part in ("secret", "ret@", "user:"))
    if "@host" in url and url.startswith("mongodb"):
        assert ENCODE_HINT in str(raised.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("", None),
        ("maxPoolSize=many", "maxPoolSize"),
        ("maxPoolSize=", "maxPoolSize"),
        ("nosuchoption=1", "nosuchoption"),
        ("tlsCAFile=/nowhere/secret.pem", "tlsCAFile"),
        ("readPreference=sometimes", "readPreference"),
    ],
)
def test_option_that_the_driver_does_not_take_is_refused_by_its_name(options: str, named: str | None):
    url = f"mongodb://user:secret@host/db?{options}"
    if named is None:
        open_database(url, 10).client.close()
        return
    with pytest.raises(InvalidSettings) as raised:
        open_database(url, 10)
    assert str(raised.value).startswith(f"WEBHOOKS_MONGODB_URL: the option {named} ")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        "",
        "?readPreference=secondaryPreferred",
        "?readPreference=secondary&maxStalenessSeconds=120&readPreferenceTags=dc:ny&readPreferenceTags=",
        "?readPreference=nearest&readPreferenceTags=dc:ny,rack:1",
        "?maxStalenessSeconds=120",
    ],
)
def test_all_is_read_from_the_primary_and_written_to_a_majority_whatever_the_url_says(options: str):
    database = open_database(f"mongodb://a,b/db{options}", 10)
    with database.client as client:
        for place in (client, database, database["deliveries"]):
            assert place.read_preference == ReadPreference.PRIMARY
            assert place.write_concern == WriteConcern("majority", j=True)
            assert place.read_concern == ReadConcern()
        assert client.options.retry_writes


def test_option_without_effect_is_found():
    url = "mongodb://h/db?readPreference=secondary&maxStalenessSeconds=120&w=majority&ReadPreferenceTags=dc:ny"
    assert find_overruled(url) == ["readPreference", "maxStalenessSeconds", "ReadPreferenceTags"]
    assert find_overruled("mongodb://h/db?readPreference=primary") == []


@pytest.mark.parametrize(("options", "name"), [("", "webhooks"), ("?appName=billing", "billing")])
def test_name_that_the_url_gives_the_application_is_obeyed(options: str, name: str):
    with open_database(f"mongodb://host/db{options}", 10).client as client:
        assert client.options.pool_options.metadata["application"] == {"name": name}


def test_database_is_the_urls_or_webhooks(tmp_path: Path):
    for path, name in [("", "webhooks"), ("/", "webhooks"), ("/db", "db"), ("/a%2Db", "a-b")]:
        database = open_database(f"mongodb://host{path}", 10)
        with database.client:
            assert database.name == name


def test_srv_name_is_not_looked_up_when_the_database_is_opened():
    database = open_database("mongodb+srv://user:secret@cluster.nowhere.invalid/db", 10)
    with database.client:
        assert database.name == "db"
