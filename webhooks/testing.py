"""Record events instead of sending them, in a service's tests. Needs neither broker nor MongoDB."""

from collections.abc import Iterator
from contextlib import contextmanager

from webhooks.producer.deliver import RecordedEvent, record_with

__all__ = ["RecordedEvent", "recorded_events"]


@contextmanager
def recorded_events() -> Iterator[list[RecordedEvent]]:
    """Record the events of all threads until the block ends; invalid events raise as usual.

    ``delay_on_commit`` records its event when the Django transaction commits.

    Yields:
        The recorded events, in order; the list grows.
    """
    events: list[RecordedEvent] = []
    with record_with(events.append):
        yield events
