"""For the tests of a service: its events are recorded instead of sent, without a broker and without MongoDB."""

from collections.abc import Iterator
from contextlib import contextmanager

from webhooks.producer.deliver import RecordedEvent, record_with

__all__ = ["RecordedEvent", "recorded_events"]


@contextmanager
def recorded_events() -> Iterator[list[RecordedEvent]]:
    """Record what the service hands in, by whichever function and in whichever thread, until the block ends.

    An event is checked as always, and a bad one raises as always. What waits for the commit of a Django transaction is
    recorded at the commit.

    Yields:
        The events so far, in their order; the list grows.
    """
    events: list[RecordedEvent] = []
    with record_with(events.append):
        yield events
