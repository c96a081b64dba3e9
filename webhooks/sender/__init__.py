"""One HTTP request, to an address that was judged first.

Re-exports what others use: `client` has the request, `connection` the guarded connections and their deadline,
`resolver` the look-up, `proxy` the way through one, `ports` the rule about ports, `response` what counts as HTTP,
`readable` the response as text, `retry_after` how long it asks us to wait; `exchange` the same request over a kept
connection without waiting, `multiplexer` many of these in one thread.
"""

from webhooks.sender.attempt import Answer, Timings
from webhooks.sender.client import Sender
from webhooks.sender.exchange import Exchange
from webhooks.sender.multiplexer import Multiplexer
from webhooks.sender.resolver import Resolver

__all__ = ["Answer", "Exchange", "Multiplexer", "Resolver", "Sender", "Timings"]
