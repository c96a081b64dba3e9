"""The events and webhooks of the benchmark."""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bson import ObjectId

from webhooks.models import now
from webhooks.models.webhook import COTWebhook, SigningSecret
from webhooks.rules.encryption import Use, Vault
from webhooks.rules.signing import find_scheme, new_secret

#: Different events per webhook; producers hand them in again and again.
_KINDS = 25
#: Characters of each field that fills an event.
_FIELD_CHARS = 60
_CREATED_AT = "2022-05-05T19:54:29.924Z"
_TRIGGER, _TYPE = "create-edit-delete-task", "COTTask"
_TEXT = "the pump in sector one needs a new filter before the next inspection of the plant by its owner"


@dataclass(frozen=True, slots=True)
class Target:
    """A webhook that gets all tasks of its company."""

    url: str
    company: ObjectId = field(default_factory=ObjectId)
    id: ObjectId = field(default_factory=ObjectId)

    def to_bson(self, vault: Vault) -> dict[str, Any]:
        """Return its document, with a secret that signs its requests."""
        text = new_secret()
        secret = SigningSecret(
            id=secrets.token_hex(4),
            scheme=find_scheme(text).value,
            sealed=vault.seal(text, self.id, Use.SIGN),
            createdAt=now(),
        )
        webhook = COTWebhook.model_validate(
            {
                "_id": self.id,
                "company": self.company,
                "isActive": True,
                "trigger": _TRIGGER,
                "url": self.url,
                "name": "benchmark",
                "code": f"bench_{self.id}",
                "context": {},
                "__v": 0,
                "description": "",
                "secrets": [secret.model_dump()],
            }
        )
        return webhook.to_bson()


def make_event(company: ObjectId, kind: int, size: int) -> dict[str, Any]:
    """Make an event of the contract.

    Args:
        company: its company.
        kind: makes it differ from the others.
        size: approximate bytes of its JSON.
    """
    event: dict[str, Any] = {
        "company": str(company),
        "type": _TYPE,
        "event": "create",
        "createdAt": _CREATED_AT,
        "data": {
            # The producer sets both.
            "number": kind,
            "sent_at": 0.0,
            "_id": f"62742b7562f37034d9{kind:06x}",
            "isActive": True,
            "taskGroup": "6261612a8f1e99002e5c8cce",
            "weight": 0,
            "closedAt": None,
        },
        "extraData": None,
    }
    text = _text(kind)
    index = 0
    while (missing := size - len(json.dumps(event, separators=(",", ":")))) > 0:
        # Short fields, as real objects have.
        event["data"][f"field{index}"] = next(text)[: max(1, missing - 12)]
        index += 1
    return event


def _text(kind: int) -> Iterator[str]:
    place = kind
    while True:
        place = (place + 7) % (len(_TEXT) - _FIELD_CHARS)
        yield _TEXT[place : place + _FIELD_CHARS]


def to_lines(targets: Sequence[Target], size: int) -> Iterator[str]:
    """Write events for a producer: a JSON object per line with ``url`` and ``event``, the webhooks in turn."""
    for kind in range(_KINDS):
        for target in targets:
            line: Mapping[str, Any] = {"url": target.url, "event": make_event(target.company, kind, size)}
            yield json.dumps(line) + "\n"
