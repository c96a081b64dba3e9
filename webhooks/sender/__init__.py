"""One HTTP request, to an address that was judged first.

Re-exports what others use: `client` has the request, `connection` the guarded connections and their deadline,
`resolver` the look-up, `proxy` the way through one, `ports` the rule about ports, `response` what counts as HTTP,
`readable` the response as text, `retry_after` how long it asks us to wait.
"""

from webhooks.sender.attempt import Timings
from webhooks.sender.client import Answer, Sender
from webhooks.sender.resolver import Resolver

__all__ = ["Answer", "Resolver", "Sender", "Timings"]
