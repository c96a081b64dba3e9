"""What this command and the workers make of one thing each: addresses, ports, and the key that seals secrets.

Commands run in a terminal, with settings of their own; requests are made by workers, with theirs.
"""

import socket
from ipaddress import ip_address, ip_network

from webhooks.cli.common import print_error
from webhooks.cli.questions import NoAnswer, Query, inspect_workers
from webhooks.config import get_settings
from webhooks.errors import NoResponse, SecretUnreadable
from webhooks.models.url import RequestUrl, parse_url
from webhooks.rules.addresses import Verdict, classify
from webhooks.rules.encryption import Vault
from webhooks.rules.ports import check_port
from webhooks.worker.digest import SETTINGS_COMMAND, Digest, fingerprint, open_missing

#: Seconds in which workers have to answer where a person waits for it.
_WITHIN_S = 1.0
#: Seconds for all of it: a broker that is away must not keep a command that needs only MongoDB.
_ALL_WITHIN_S = 3.0
#: What these names mean on any machine (RFC 6761).
_LOCALHOST = ("127.0.0.1", "::1")

Digests = dict[str, Digest]


def ask_workers(timeout_s: float = _WITHIN_S) -> Query[Digests]:
    """Ask the workers for their settings, while something else is done."""
    url = get_settings().broker_url

    def ask() -> Digests:
        told = {name: Digest.read(reply) for name, reply in inspect_workers(url, SETTINGS_COMMAND, timeout_s).items()}
        return {name: digest for name, digest in told.items() if digest is not None}

    return Query(ask)


def _answers(question: Query[Digests]) -> Digests:
    try:
        return question.result(_ALL_WITHIN_S)
    except NoAnswer:
        return {}


# ── Addresses and ports ─────────────────────────────────────────────────────────────────────────────────────────────


def note_refusal(url: str, asked: Query[Digests], *, label: str = "") -> None:
    """Say early what an attempt would say, of what can be told without a look-up.

    Args:
        url: a webhook's.
        asked: the workers, whose settings count. Where none answers, those of this terminal stand for theirs.
        label: which webhook, where there may be several.
    """
    target, workers = parse_url(url), _answers(asked)
    about = f"note: {label}: " if label else "note: "
    if not workers:
        reason = find_refusal(target, Digest.of(get_settings()))
        if reason:
            print_error(f"{about}no worker answered; with this terminal's settings its attempts fail: {reason}")
        return
    refusals: dict[str, list[str]] = {}
    for name, digest in workers.items():
        if reason := find_refusal(target, digest):
            refusals.setdefault(reason, []).append(name)
    for reason, names in refusals.items():
        print_error(f"{about}its attempts fail at {', '.join(sorted(names))}: {reason}")


def find_refusal(target: RequestUrl, digest: Digest) -> str | None:
    """Say why a process with these settings refuses a URL, and which setting allows it; None where it does not.

    A host name is looked up at each attempt, so nothing is known of it here.
    """
    try:
        check_port(target.port, digest.ports())
    except NoResponse as error:
        return f"{error.text}; list it in WEBHOOKS_ALLOWED_PORTS, with all others that are to be allowed"
    for address in _addresses(target):
        verdict = classify(address, digest.networks())
        if not verdict.is_allowed:
            return f"address not allowed: {target.shown_host} ({verdict}); {_remedy(address, verdict)}"
    return None


def _addresses(target: RequestUrl) -> list[str]:
    name = target.host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return list(_LOCALHOST)
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        return []
    return [str(sockaddr[0]) for *_, sockaddr in found]


def _remedy(address: str, verdict: Verdict) -> str:
    network = "127.0.0.0/8,::1/128" if verdict is Verdict.LOOPBACK else None
    if network is None:
        found = ip_address(address)
        mapped = getattr(found, "ipv4_mapped", None) or found
        if verdict is Verdict.ZONED:
            return "no setting allows an address with a zone"
        network = str(ip_network(mapped))
    start = "start workers with"
    up = ", or `webhooks up --allow-loopback`" if verdict is Verdict.LOOPBACK else ""
    return f"{start} WEBHOOKS_ALLOWED_NETWORKS={network}{up}"


# ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_key(asked: Query[Digests]) -> None:
    """Make sure that something can be sealed here, and that workers can open it: else they would send nothing.

    Where no worker answers there is nothing to compare.

    Raises:
        SecretUnreadable: there is no key, or a worker lacks it; with the remedy.
    """
    keys = get_settings().encryption_key
    Vault(keys).require_key()
    workers = _answers(asked)
    missing = open_missing(workers, keys[0])
    if missing:
        theirs = sorted({key for name in missing for key in workers[name].encryption_key})
        have = f"has another one (fingerprint {', '.join(theirs)})" if theirs else "has none"
        raise SecretUnreadable(
            f"WEBHOOKS_ENCRYPTION_KEY here (fingerprint {fingerprint(keys[0])}) is not that of {', '.join(missing)}, "
            f"which {have} and could not open what is sealed with it: set the same key in both. `webhooks up` keeps "
            "its key in encryption.key in its data folder, and says how to set it"
        )
