"""A channel that runs our scripts and refuses a Redis that is too old for them."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import redis
from kombu.transport import redis as plain
from redis.exceptions import NoScriptError, ResponseError

from webhooks.errors import BrokerTooOld
from webhooks.transport.scripts import SHAS

#: Major version of the first Redis with script flags.
_OLDEST_REDIS = 7


class ScriptRunner(plain.Channel):
    """Runs scripts inside Redis."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._kept: tuple[Any, Any] = (None, None)
        self._kept_plain: tuple[Any, Any] = (None, None)
        try:
            super().__init__(*args, **kwargs)
        except redis.AuthenticationError as error:
            # The same type, so that Celery retries: the password may be changed meanwhile.
            raise type(error)(f"{error}; check user and password in WEBHOOKS_BROKER_URL") from error
        except ResponseError as error:
            self._refuse_old_redis(error)
            raise

    @property
    def _notes(self) -> list[str]:
        return [self.unacked_key, self.unacked_index_key]

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Return the client for kombu's commands, one per pool; kombu makes one per command."""
        if asynchronous:
            return super()._create_client(asynchronous=True)
        pool, client = self._kept
        if pool is not self.pool:
            client = super()._create_client()
            self._kept = self.pool, client
        return client

    @property
    def _script_client(self) -> Any:
        """A client that does not prefix keys: kombu's prefixes only a script's first key."""
        pool, client = self._kept_plain
        if pool is not self.pool:
            client = redis.Redis(connection_pool=self.pool)
            self._kept_plain = self.pool, client
        return client

    def _evalsha(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> tuple[Any, ...]:
        return "EVALSHA", SHAS[script], len(keys), *(self.global_keyprefix + key for key in keys), *arguments

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a script; its keys get the user's prefix."""
        command = self._evalsha(script, keys, arguments)
        try:
            return self._script_client.execute_command(*command)
        except NoScriptError:
            self._load_scripts()
            return self._script_client.execute_command(*command)

    def begin(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Callable[[], Any]:
        """Send a script; return a function that waits for its reply. Call it once."""
        pool, command = self.pool, self._evalsha(script, keys, arguments)
        link = _get_connection(pool)
        try:
            link.send_command(*command)
        except BaseException:
            _drop(pool, link)
            raise

        def wait() -> Any:
            try:
                reply = read_reply(link)
            except BaseException:
                _drop(pool, link)
                raise
            pool.release(link)
            if isinstance(reply, NoScriptError):
                return self.run(script, keys, arguments)
            if isinstance(reply, ResponseError):
                raise reply
            return reply

        return wait

    def _load_scripts(self) -> None:
        try:
            for script in SHAS:
                self._script_client.script_load(script)
        except ResponseError as error:  # their first line needs Redis 7.0
            self._refuse_old_redis(error)
            raise

    def _refuse_old_redis(self, error: ResponseError) -> None:
        """Raise BrokerTooOld if the error's cause is an old Redis."""
        try:
            # Redis 5 does not know the driver's default protocol.
            with redis.Redis(connection_pool=redis.ConnectionPool(**{**self._connparams(), "protocol": 2})) as client:
                facts = cast("dict[str, Any]", client.info("server"))
        except redis.RedisError:  # an ACL with -@dangerous refuses INFO
            return
        version = str(facts.get("redis_version", ""))
        major = version.partition(".")[0]
        if major.isdigit() and int(major) < _OLDEST_REDIS and "valkey_version" not in facts:
            raise BrokerTooOld(
                f"Redis {version} at WEBHOOKS_BROKER_URL is too old: use Redis {_OLDEST_REDIS}.0 or later, or Valkey, "
                "or set WEBHOOKS_ATOMIC_TRANSPORT=false"
            ) from error

    def prefixed(self, key: str) -> str:
        """Return a key with the user's prefix."""
        return self.global_keyprefix + key


def read_reply(link: Any) -> Any:
    """Read one reply. Redis's errors are returned, as the replies after them must be read too."""
    try:
        return link.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


def _get_connection(pool: Any) -> Any:
    try:
        return pool.get_connection()
    except TypeError:  # redis before 5.3 requires a command; later versions warn of it
        return pool.get_connection("EVALSHA")


def _drop(pool: Any, link: Any) -> None:
    """Close a connection on which a reply may still come."""
    link.disconnect()
    pool.release(link)


def as_connection_error(error: ResponseError) -> redis.ConnectionError:
    """Convert a refusal, such as that of a new replica, to an error after which Celery reconnects."""
    return redis.ConnectionError(f"Redis refuses: {error}")
