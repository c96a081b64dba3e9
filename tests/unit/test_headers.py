"""Which further headers a webhook may have."""

from typing import Any

import pytest

from tests.lab.samples_data import read_sample
from webhooks.errors import InvalidWebhook
from webhooks.models import parse_webhook
from webhooks.models.headers import MAX_HEADERS, MAX_VALUE_CHARS

WEBHOOK = read_sample("webhook-task")


def parse(*headers: Any) -> Any:
    return parse_webhook({**WEBHOOK, "headers": list(headers)}).headers


@pytest.mark.parametrize("value", ["x", "Bearer a.b-c", 'a\tb "c"', "~" * MAX_VALUE_CHARS])
def test_header_is_taken(value: str):
    (header,) = parse({"name": "X-Key", "value": value})
    assert (header.name, header.value, header.sealed) == ("X-Key", value, None)


@pytest.mark.parametrize(
    "name",
    [
        *("", "X Key", "X:Key", "X-Key\r\n", "X\r\nHost", "Ñ", "(x)", "x" * 101, "\0"),
        *("Host", "content-length", "CONTENT-TYPE", "User-Agent", "Accept", "Accept-Encoding", "Webhook-Id"),
        *("webhook-signature", "webhook-timestamp", "Connection", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding"),
        *("Upgrade", "Proxy-Authorization", "Expect", "Content-Encoding", "Webhook_Signature", "Transfer_Encoding"),
        *("x!y", "X.Key"),
    ],
)
def test_header_that_is_ours_or_none_is_refused(name: str):
    with pytest.raises(InvalidWebhook, match="headers"):
        parse({"name": name, "value": "x"})


@pytest.mark.parametrize(
    "value", ["", " x", "x ", "x\r\ny: z", "x\ny", "x\0", "ñ", "\x7f", "hunter2" * MAX_VALUE_CHARS]
)
def test_value_that_http_cannot_carry_is_refused_and_not_repeated(value: str):
    with pytest.raises(InvalidWebhook, match="headers") as caught:
        parse({"name": "X-Key", "value": value})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "headers",
    [
        [{"name": "X-Key"}],
        [{"name": "X-Key", "value": "x", "sealed": "y"}],
        [{"name": "X-Key", "value": 1}],
        [{"name": "X-Key", "value": "x"}, {"name": "x-key", "value": "y"}],
        [{"name": "X-Key", "value": "x"}, {"name": "X_Key", "value": "y"}],
        [{"name": f"X-{number}", "value": "x"} for number in range(MAX_HEADERS + 1)],
        ["X-Key: x"],
        [None],
    ],
)
def test_list_that_is_wrong_is_refused(headers: list[Any]):
    with pytest.raises(InvalidWebhook, match="headers"):
        parse(*headers)


def test_none_is_no_headers():
    assert parse_webhook({**WEBHOOK, "headers": None, "secrets": None}).headers == ()
