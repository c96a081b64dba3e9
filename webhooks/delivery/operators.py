"""Send notices to operators: a signed request to a URL from the settings."""

from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from bson import ObjectId

from webhooks.config import Proxy
from webhooks.models.wire import now, to_json, to_wire
from webhooks.rules.retry import why_failed
from webhooks.rules.signing import sign
from webhooks.sender import Sender
from webhooks.version import __version__

#: The URL comes from the operator, not from a customer, so it may point to any address, as of an internal chat.
_ANYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_ANY_PORT = frozenset(range(1, 65536))


class Operators:
    """Sends notices to operators. One per process; its methods are thread-safe."""

    def __init__(
        self,
        url: str,
        secret: str | None,
        *,
        connect_timeout_s: float,
        total_timeout_s: float,
        ca_bundle: Path | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        """Read the certificate authorities; open no connection. `Sender` documents the other arguments.

        Args:
            url: `WEBHOOKS_OPERATORS_URL`.
            secret: ``whsec_…`` for the signature; None: requests are not signed.
            connect_timeout_s: as in `Sender`.
            total_timeout_s: as in `Sender`.
            ca_bundle: as in `Sender`.
            proxy: as in `Sender`.
        """
        self._url = url
        self._secrets = [secret] if secret else []
        self._sender = Sender(
            allowed_networks=_ANYWHERE,
            allowed_ports=_ANY_PORT,
            proxy=proxy,
            connect_timeout_s=connect_timeout_s,
            total_timeout_s=total_timeout_s,
            max_response_bytes=0,  # the status says it all
            ca_bundle=ca_bundle,
            pool_size=1,
        )

    def tell(self, notice_id: ObjectId | str, body: Mapping[str, Any]) -> str | None:
        """POST a notice as JSON, signed as in Standard Webhooks.

        Args:
            notice_id: sent as ``webhook-id``; the same at each try, so that a receiver can drop repeats.
            body: ids and instants are written as in an event.

        Returns:
            None on success, else the reason for the log. The reason holds neither the URL's path and query nor the
            response, as both may hold secrets.
        """
        content = to_json(to_wire(body)).encode()
        message_id, timestamp = str(notice_id), int(now().timestamp())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"webhooks/{__version__}",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
        }
        if self._secrets:
            headers["webhook-signature"] = sign(self._secrets, message_id, timestamp, content)
        answer = self._sender.post(self._url, headers, content)
        if answer.status is None:
            return answer.text
        reason = why_failed(answer.status)
        return None if reason is None else f"status {answer.status}: {reason}"

    def close(self) -> None:
        """Close idle connections and threads."""
        self._sender.close()
