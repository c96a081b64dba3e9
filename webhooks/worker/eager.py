"""Precondition of tasks that run in the calling process: eagerly, or called as functions."""

from webhooks.config import get_settings
from webhooks.errors import StoreUnavailable
from webhooks.store.mongo import open_database, server_version

#: Timeout for MongoDB. Shorter than a worker's, as the caller is usually a test.
_TIMEOUT_S = 2.0


def check() -> None:
    """Make sure that MongoDB answers.

    Raises:
        StoreUnavailable: it does not; the text names the alternative for tests.
    """
    database = open_database(get_settings().mongodb_url, _TIMEOUT_S)
    try:
        server_version(database)
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"{error}; deliver does a worker's work here, as it is called as a function or with task_always_eager. "
            "A test that looks at what is sent needs none of it: webhooks.testing.recorded_events()"
        ) from None
    finally:
        database.client.close()
