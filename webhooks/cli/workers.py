"""Check URLs and the encryption key against the workers' settings, which may differ from this terminal's."""

import socket
from ipaddress import ip_address, ip_network

from webhooks.cli.output import print_error
from webhooks.config import get_settings
from webhooks.errors import NoResponse, SecretUnreadable
from webhooks.models.url import RequestUrl, parse_url
from webhooks.rules.addresses import Verdict, classify
from webhooks.rules.encryption import Vault, fingerprint
from webhooks.rules.ports import check_port
from webhooks.store.leases import WorkerStore
from webhooks.worker.digest import Digest, open_missing

#: Addresses of localhost on any machine (RFC 6761).
_LOCALHOST = ("127.0.0.1", "::1")

Digests = dict[str, Digest]


def find_workers(store: WorkerStore) -> Digests:
    """Return the settings of the workers that are alive, by Celery's node name.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    told = {name: Digest.read(settings) for name, settings in store.find_settings().items()}
    return {name: digest for name, digest in told.items() if digest is not None}


# ── Addresses and ports ─────────────────────────────────────────────────────────────────────────────────────────────


def note_refusal(url: str, workers: Digests, *, label: str = "") -> None:
    """Print a note if attempts at a URL would fail by the workers' settings, or this terminal's if none runs.

    Args:
        url: a webhook's.
        workers: from `find_workers`.
        label: the webhook's label, if the note has to name it.
    """
    parsed = parse_url(url)
    about = f"note: {label}: " if label else "note: "
    if not workers:
        reason = find_refusal(parsed, Digest.of(get_settings()))
        if reason:
            print_error(f"{about}no worker runs; with this terminal's settings its attempts fail: {reason}")
        return
    refusals: dict[str, list[str]] = {}
    for name, digest in workers.items():
        if reason := find_refusal(parsed, digest):
            refusals.setdefault(reason, []).append(name)
    for reason, names in refusals.items():
        print_error(f"{about}its attempts fail at {', '.join(sorted(names))}: {reason}")


def find_refusal(url: RequestUrl, digest: Digest) -> str | None:
    """Return why a process with these settings refuses a URL, and the remedy; None if it does not refuse it.

    Host names are not looked up, except localhost.
    """
    try:
        check_port(url.port, digest.ports())
    except NoResponse as error:
        return f"{error.text}; list it in WEBHOOKS_ALLOWED_PORTS, together with all other allowed ports"
    for address in _addresses(url):
        verdict = classify(address, digest.networks())
        if not verdict.is_allowed:
            return f"address not allowed: {url.shown_host} ({verdict}); {_remedy(address, verdict)}"
    return None


def _addresses(url: RequestUrl) -> list[str]:
    name = url.host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return list(_LOCALHOST)
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        return []
    return [str(sockaddr[0]) for *_, sockaddr in found]


def _remedy(address: str, verdict: Verdict) -> str:
    start = "start workers with WEBHOOKS_ALLOWED_NETWORKS="
    if verdict is Verdict.LOOPBACK:
        return f"{start}127.0.0.0/8,::1/128, or `webhooks up --allow-loopback`"
    if verdict is Verdict.ZONED:
        return "no setting allows an address with a zone"
    found = ip_address(address)
    return f"{start}{ip_network(getattr(found, 'ipv4_mapped', None) or found)}"


# ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_key(workers: Digests) -> None:
    """Raise SecretUnreadable if this terminal has no key, or a worker that runs does not have the same key."""
    keys = get_settings().encryption_key
    Vault(keys).require_key()
    missing = open_missing(workers, keys[0])
    if missing:
        theirs = sorted({key for name in missing for key in workers[name].encryption_key})
        have = f"has another one (fingerprint {', '.join(theirs)})" if theirs else "has none"
        raise SecretUnreadable(
            f"WEBHOOKS_ENCRYPTION_KEY here (fingerprint {fingerprint(keys[0])}) is not that of {', '.join(missing)}, "
            f"which {have} and could not open secrets sealed with it: set the same key in both. `webhooks up` keeps "
            "its key in encryption.key in its data folder, and prints the command that sets it"
        )
