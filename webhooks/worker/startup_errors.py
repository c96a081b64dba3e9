"""Adds the remedy to what Celery's consumer says when it cannot connect; by itself it says why, and tries again."""

import logging

from celery.worker.consumer import consumer

from webhooks.rules.remedies import explain_broker


class _AddsRemedy(logging.Filter):
    """Replaces the error in the line by the same with its remedy."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg == consumer.CONNECTION_ERROR and isinstance(record.args, tuple):
            record.args = tuple(explain_broker(one) if isinstance(one, Exception) else one for one in record.args)
        return True


def add_remedies() -> None:
    """Have Celery's consumer say them.

    Called by our consumer and not at import: Sentry patches Celery before Celery's consumer is imported.
    """
    consumer.logger.addFilter(_AddsRemedy())
