"""Telling operators what became of webhooks: a request to a URL of their own.

Owns what such a request looks like and when it counts as taken. Never decides what is told or when to try again: the
steward does, which calls this.
"""

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

#: The operator of this service wrote the URL, no customer: it may lead to any address and port, such as a chat server
#: inside the network. Whatever answers there is read as carefully as any other.
_ANYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_ANY_PORT = frozenset(range(1, 65536))


class Operators:
    """Where operators are told of things. One per process; its methods are thread-safe."""

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
        """Make it. Opens no connection, reads the certificate authorities.

        Args:
            url: of the settings.
            secret: ``whsec_…`` that the requests are signed with; None: they are not signed.
            connect_timeout_s: as in `Sender`, like all that follow.
            total_timeout_s: see there.
            ca_bundle: see there.
            proxy: see there.
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
        """POST a notice as JSON, signed as Standard Webhooks has it.

        Args:
            notice_id: what comes as ``webhook-id``: the same each time a notice is told, so that one that comes twice
                can be told from a new one.
            body: ids and instants in it are written as in an event.

        Returns:
            None when it was taken; else why it was not, for the log. No more of the URL is in it than host and port,
            and nothing of what came back: paths and queries often hold secrets, and an answer may repeat them.
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
        """Close all idle connections, and let go of idle threads."""
        self._sender.close()
