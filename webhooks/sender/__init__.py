"""HTTP requests to checked addresses."""

from webhooks.sender.client import OnAnswer, Sender
from webhooks.sender.deadline import Answer, Timings
from webhooks.sender.request import OutgoingRequest
from webhooks.sender.resolver import Resolver

__all__ = ["Answer", "OnAnswer", "OutgoingRequest", "Resolver", "Sender", "Timings"]
