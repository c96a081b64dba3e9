"""Tasks that run in the process that calls them: eagerly, or called as functions."""

from webhooks.config import get_settings
from webhooks.errors import StoreUnavailable
from webhooks.store.mongo import open_database, server_version

#: Seconds that MongoDB may take here. A worker waits longer for one that is away; the caller here is mostly a test.
_TIMEOUT_S = 2.0


def check() -> None:
    """Make sure that MongoDB answers.

    Raises:
        StoreUnavailable: it does not; the text says what else a test can do.
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
