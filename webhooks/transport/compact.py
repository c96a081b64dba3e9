"""The stored form of messages with a lane: what a worker assumes anyway is left out. Any version's worker reads it.

An event, which is the only argument of its task and is JSON text, is not quoted: in the body it is an object, each of
its quotes takes two bytes instead of four, and `read_inlined` returns its text without parsing it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json, to_json

from webhooks.transport.headers import LANE_HEADER

#: The content type of Celery's messages.
JSON = "application/json"
#: The end of a body that Celery writes, and what is stored instead.
_NO_CALLBACKS = ', {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
_NO_CALLBACKS_STORED = ", null]"
#: A body with an inlined argument.
_BEFORE, _AFTER = b"[[{", b"}],{},null]"

#: Celery's headers → the value that a worker assumes if the header is missing.
_ASSUMED: Mapping[str, Any] = {
    "lang": "py",
    "retries": 0,
    "timelimit": [None, None],
    "ignore_result": True,  # an option of our app
    "replaced_task_nesting": 0,
    "stamps": {},
    "kwargsrepr": "",
    **dict.fromkeys(("shadow", "eta", "expires", "group", "group_index", "stamped_headers", "parent_id")),
}
#: Properties that say again what headers and queue say, or are for results and for brokers other than Redis.
_REPEATED = frozenset(
    {"correlation_id", "reply_to", "delivery_mode", "delivery_info", "argsrepr", "kwargsrepr", "body_encoding"}
)


def can_shorten(message: Mapping[str, Any]) -> bool:
    """Return whether a message of kombu's `prepare_message` is a task's message with a lane."""
    return (
        LANE_HEADER in message["headers"]
        and isinstance(message["body"], str)
        and (message["content-type"], message["content-encoding"]) == (JSON, "utf-8")
    )


def shorten(message: Mapping[str, Any], tag: str) -> dict[str, Any]:
    """Return a message of which `can_shorten` is true in its stored form.

    Args:
        message: it is unchanged, as kombu uses its parts again if publishing is retried.
        tag: tells apart two messages that are otherwise equal.
    """
    headers = {name: value for name, value in message["headers"].items() if _ASSUMED.get(name, _ASSUMED) != value}
    if headers.get("root_id") == headers.get("id"):
        headers.pop("root_id", None)
    properties = {name: value for name, value in message["properties"].items() if value and name not in _REPEATED}
    return {
        "body": _shorten_body(message["body"]),
        "content-type": JSON,
        "headers": headers,
        "properties": {**properties, "delivery_tag": tag},
    }


def restore(message: dict[str, Any], queue: str) -> None:
    """Put back into a message from a queue what `shorten` left out and a worker shows or passes on."""
    headers = message["headers"]
    if "id" in headers:
        headers.setdefault("root_id", headers["id"])
    delivery_info = message["properties"].setdefault("delivery_info", {"exchange": "", "routing_key": queue})
    if isinstance(delivery_info, dict) and headers.get("redelivered"):
        delivery_info["redelivered"] = True


def _shorten_body(body: str) -> str:
    if not body.endswith(_NO_CALLBACKS):
        return body
    if body.startswith('[["{'):
        args, kwargs, _ = from_json(body)
        if not kwargs:
            return write_body(args, kwargs)
    return body.removesuffix(_NO_CALLBACKS) + _NO_CALLBACKS_STORED


def write_body(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Write the body of a task's message, without callbacks, from arguments of JSON types."""
    if len(args) == 1 and not kwargs and isinstance(args[0], str) and args[0][:1] == "{" and "__type__" not in args[0]:
        return f"[[{args[0]}],{{}},null]"
    return to_json((args, kwargs, None)).decode()


def read_inlined(body: bytes) -> str | None:
    """Return the text of an inlined argument; None if the body has none."""
    if body.startswith(_BEFORE) and body.endswith(_AFTER):
        return body[len(_BEFORE) - 1 : 1 - len(_AFTER)].decode()
    return None
