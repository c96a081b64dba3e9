"""Which setting caused a refused attempt: for operators, in the worker's log, Flower and the command.

Customers read the logs in MongoDB, whose texts the contract defines, so hints are not stored there.
"""

from collections.abc import Mapping

from webhooks.errors import ErrorKind

_HINTS: Mapping[str, str] = {
    ErrorKind.NOT_ALLOWED: "the workers' WEBHOOKS_ALLOWED_NETWORKS and WEBHOOKS_ALLOWED_PORTS say what is allowed",
    ErrorKind.SECRET_UNREADABLE: "the workers' WEBHOOKS_ENCRYPTION_KEY must be the key that sealed the secret",
}


def hint(kind: str | None) -> str | None:
    """Return which setting to check for an error kind; None if no setting helps."""
    return None if kind is None else _HINTS.get(kind)
