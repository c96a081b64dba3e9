"""Sentences that tell people what an attempt's outcome means and what to do about it."""

from dataclasses import dataclass
from http import HTTPStatus

from webhooks.errors import ErrorKind
from webhooks.rules.hints import hint
from webhooks.rules.retry import Outcome, judge, why_failed


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an attempt counts as what it counts as."""

    reason: str
    #: What to do about it; empty where nothing is to be done.
    remedy: str = ""


_BY_KIND = {
    ErrorKind.LOOKUP: Explanation(
        "The host name has no address.", "Correct the host in the webhook's URL, or its DNS record."
    ),
    ErrorKind.RESOLVER: Explanation(
        "The name server could not be asked, so the receiver was never reached.",
        "Check DNS on the machines that run the workers.",
    ),
    ErrorKind.CONNECT_TIMEOUT: Explanation(
        "No TCP connection came about in time: a firewall drops packets, or the host is down.",
        "Have the receiver's operator check its firewall and that its host is up.",
    ),
    ErrorKind.CONNECT_REFUSED: Explanation(
        "The host refused the connection: nothing listens on that port.",
        "Start the receiver's service, or correct the port in the webhook's URL.",
    ),
    ErrorKind.CONNECT_FAILED: Explanation(
        "The TCP connection failed, for example because there is no route to the host.",
        "Check the address in the webhook's URL and the network between.",
    ),
    ErrorKind.TLS: Explanation(
        "TLS failed: the handshake broke off or the certificate was not accepted.",
        "Have the receiver renew or complete its certificate chain.",
    ),
    ErrorKind.RESET: Explanation(
        "The connection was reset while the request or the response was on its way.",
        "The receiver or a proxy before it cut the connection; its logs at that time say why.",
    ),
    ErrorKind.HANG_UP: Explanation(
        "The receiver closed the connection without a response.",
        "Its process may have crashed on this request; its logs at that time say why.",
    ),
    ErrorKind.ABORTED: Explanation(
        "The response began and broke off before its end.", "The receiver's logs at that time say why."
    ),
    ErrorKind.BAD_RESPONSE: Explanation(
        "What came back is not HTTP.", "The port belongs to another protocol: correct the webhook's URL."
    ),
    ErrorKind.TIMEOUT: Explanation(
        "The receiver did not finish its response before the deadline. It may have processed the event.",
        "Have the receiver answer at once and do its work afterwards.",
    ),
    ErrorKind.NOT_ALLOWED: Explanation("Requests to this address or port are not allowed, so none was sent."),
    ErrorKind.PROXY: Explanation(
        "The outgoing proxy failed or could not reach the address.", "Check WEBHOOKS_PROXY_URL and the proxy's logs."
    ),
    ErrorKind.BAD_URL: Explanation("The webhook's URL cannot be requested.", "Correct the webhook's URL."),
    ErrorKind.SECRET_UNREADABLE: Explanation(
        "A signing secret or sealed header of the webhook could not be opened, or all secrets have expired. "
        "No request was sent."
    ),
    ErrorKind.INTERNAL: Explanation("A defect of the worker ended the attempt.", "The worker's log has the traceback."),
    ErrorKind.INTERRUPTED: Explanation(
        "The worker died before the end of the attempt was on record. The receiver may have got the request."
    ),
    ErrorKind.SKIPPED: Explanation("An operator gave the delivery up. No request was sent."),
    ErrorKind.WEBHOOK_INACTIVE: Explanation(
        "The webhook was deactivated after the event was accepted. No request was sent.",
        "Activate the webhook, then resend the delivery.",
    ),
    ErrorKind.WEBHOOK_UNUSABLE: Explanation(
        "The webhook's document is missing or breaks the contract. No request was sent.",
        "Correct the webhook, then resend the delivery.",
    ),
}

_AUTHENTICATION = "Check which signature, token or allow list the receiver asks for."
_REMEDY_BY_STATUS = {
    HTTPStatus.BAD_REQUEST: "The receiver could not read the request: its response or logs say what it expects.",
    HTTPStatus.UNAUTHORIZED: _AUTHENTICATION,
    HTTPStatus.FORBIDDEN: _AUTHENTICATION,
    HTTPStatus.NOT_FOUND: "Check the path in the webhook's URL.",
    HTTPStatus.METHOD_NOT_ALLOWED: "The receiver must accept POST at this path.",
    HTTPStatus.GONE: "The receiver wants no more events, so the webhook was deactivated. Activate it if that is wrong.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "Have the receiver accept larger bodies.",
    HTTPStatus.TOO_MANY_REQUESTS: "The receiver limits its rate: set a rate limit on the webhook.",
}
_REMEDY_BY_CLASS = {
    2: "The receiver must answer with a status from 200 to 209.",
    3: "Set the webhook's URL to the address that the redirect leads to.",
    4: "The receiver's response or logs say why it refused the request.",
    5: "The receiver's logs at that time say what went wrong.",
}


def explain_attempt(status: int, kind: ErrorKind | None) -> Explanation:
    """Say why an attempt succeeded or failed.

    Args:
        status: as logged.
        kind: why no response came; None when one did.
    """
    if kind is not None:
        known = _BY_KIND[kind]
        setting = hint(kind)
        return Explanation(known.reason, f"For operators: {setting}.") if setting else known
    shown = f"{status} {phrase(status)}".strip()
    if judge(status) is Outcome.SUCCESS:
        return Explanation(f"The receiver answered {shown}.")
    remedy = _REMEDY_BY_STATUS.get(HTTPStatus(status)) if status in set(HTTPStatus) else None
    return Explanation(
        f"The receiver answered {shown}: {why_failed(status)}.", remedy or _REMEDY_BY_CLASS.get(status // 100, "")
    )


def phrase(status: int) -> str:
    """Return the standard phrase of an HTTP status; empty for one that has none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
