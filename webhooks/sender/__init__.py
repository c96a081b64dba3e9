"""HTTP requests, each to an address that was judged first.

`client` sends them, over what `adapter` opens and `idle` keeps; `nonblocking` is one on its way, `loop` waits for many.
`request` makes the bytes that go out, `response` reads those that come back, `readable` makes text of a body.
Rules: `ports`, `retry_after`; the way to an address: `resolver`, `connection`, `proxy`.
"""

from webhooks.sender.client import OnAnswer, Sender
from webhooks.sender.deadline import Answer, Timings
from webhooks.sender.request import OutgoingRequest
from webhooks.sender.resolver import Resolver

__all__ = ["Answer", "OnAnswer", "OutgoingRequest", "Resolver", "Sender", "Timings"]
