import pytest

from webhooks.errors import ErrorKind
from webhooks.rules.explain import explain_attempt


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_every_error_kind_is_explained_in_a_sentence(kind: ErrorKind):
    explanation = explain_attempt(409, kind)
    assert explanation.reason.endswith(".")
    assert "409" not in explanation.reason
    assert not explanation.remedy or explanation.remedy.endswith(".")


@pytest.mark.parametrize(
    ("status", "reason", "remedy"),
    [
        (204, "The receiver answered 204 No Content.", ""),
        (210, "The receiver answered 210: only 200–209 count as success.", "from 200 to 209"),
        (301, "The receiver answered 301 Moved Permanently: redirects are not followed.", "redirect leads to"),
        (401, "The receiver answered 401 Unauthorized: the receiver refused the request.", "signature"),
        (409, "The receiver answered 409 Conflict: the receiver refused the request.", "why"),
        (410, "The receiver answered 410 Gone: the receiver refused the request.", "deactivated"),
        (422, "The receiver answered 422 Unprocessable Entity: the receiver refused the request.", "why"),
        (502, "The receiver answered 502 Bad Gateway: the receiver had an error.", "logs"),
        (999, "The receiver answered 999: not an HTTP status.", ""),
    ],
)
def test_response_is_explained_with_what_to_do(status: int, reason: str, remedy: str):
    explanation = explain_attempt(status, None)
    assert explanation.reason == reason
    assert remedy in explanation.remedy


def test_setting_that_forbids_an_address_is_named():
    assert "WEBHOOKS_ALLOWED_NETWORKS" in explain_attempt(409, ErrorKind.NOT_ALLOWED).remedy
