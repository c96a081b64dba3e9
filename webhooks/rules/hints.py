"""Which setting allows what an attempt was refused: for operators, in the worker's log, Flower and the command.

Not in the logs in MongoDB, which customers read and whose words the contract has.
"""

from webhooks.errors import ErrorKind

#: Kinds of which a setting of the workers is the cure.
_HINTS = {
    ErrorKind.NOT_ALLOWED: "the workers' WEBHOOKS_ALLOWED_NETWORKS and WEBHOOKS_ALLOWED_PORTS say what is allowed",
    ErrorKind.SECRET_UNREADABLE: "the workers' WEBHOOKS_ENCRYPTION_KEY must be the key that sealed the secret",
}


def hint(kind: str | None) -> str | None:
    """Return which setting to look at for an error kind; None where it is none of ours to allow."""
    return _HINTS.get(ErrorKind(kind)) if kind in set(ErrorKind) else None
