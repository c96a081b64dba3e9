"""Whatever a client sends to the read API, the answer is one that the API's description allows.

For hours, against a Flower that runs, with a token of a company that has webhooks and logs:

schemathesis run http://127.0.0.1:5555/api/v3/openapi.json --header "Authorization: Bearer $TOKEN" --max-examples 5000

A file `schemathesis.toml` in the folder where it runs names a webhook, as below, so that it gets more than 404.
"""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pymongo.database import Database
from schemathesis.cli import schemathesis

from tests.integration.conftest import flower, web_settings
from tests.lab.flower import FlowerThread
from tests.lab.history import COMPANY, fill
from webhooks.store.tokens import TokenStore

__all__ = ["flower", "web_settings"]

#: Few, as CI has little time; the coverage phase tries the limits of each parameter besides.
MAX_EXAMPLES = 20


@pytest.mark.parametrize("is_known", [True, False], ids=["a webhook's id", "any id"])
def test_answers_are_those_of_the_description(
    is_known: bool,
    database: Database[dict[str, Any]],
    flower: FlowerThread,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    fill(database, 300)
    _, token = TokenStore(database).add(COMPANY, "schemathesis")
    webhook = database["webhooks"].find_one({"code": "wo_update"})
    assert webhook
    monkeypatch.chdir(tmp_path)
    if is_known:
        Path("schemathesis.toml").write_text(f'[parameters]\n"path.id" = "{webhook["_id"]}"\n')
    done = CliRunner().invoke(
        schemathesis,
        [
            *("run", flower.url("/api/v3/openapi.json")),
            *("--header", f"Authorization: Bearer {token}"),
            *("--max-examples", str(MAX_EXAMPLES)),
            *("--workers", "1", "--generation-deterministic", "--no-color"),
        ],
    )
    assert done.exit_code == 0, done.output
