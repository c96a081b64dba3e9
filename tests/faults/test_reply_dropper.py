"""What the row of dropped replies stands on: the server has carried a write out, and its client gets no reply."""

from typing import Any
from urllib.parse import urlsplit

import pymongo
import pytest
import redis
from pymongo.errors import AutoReconnect

from tests.lab.reply_dropper import MongoWire, Once, RedisWire, ReplyDropper, name_mongodb_write

NO_RETRY: Any = None


def test_redis_has_done_what_its_client_hears_nothing_of(redis_url: str, redis_client: redis.Redis):
    port = redis_client.connection_pool.connection_kwargs["port"]
    with (
        ReplyDropper(port, RedisWire(), lambda words: words[0].decode(), Once("SET")) as front,
        redis.Redis(port=front.port, retry=NO_RETRY) as client,
    ):
        client.hset("hash", mapping={"a": "b" * 100_000, "c": "\r\n"})
        assert client.hgetall("hash") == {b"a": b"b" * 100_000, b"c": b"\r\n"}
        with pytest.raises(redis.ConnectionError):
            client.set("key", "value")
        assert client.get("key") == b"value"
        with client.pipeline(transaction=False) as pipeline:
            pipeline.get("none")
            pipeline.rpush("list", "x")
            pipeline.set("key", "other")
            assert pipeline.execute() == [None, 1, True]


def test_mongodb_has_done_what_its_client_hears_nothing_of(mongodb_url: str):
    port = urlsplit(mongodb_url).port or 0
    with ReplyDropper(port, MongoWire(), name_mongodb_write, Once("insert them")) as front:
        url = mongodb_url.replace(f":{port}", f":{front.port}")
        with pymongo.MongoClient(url, directConnection=True, retryWrites=False) as client:
            them = client["reply_dropper"]["them"]
            them.drop()
            with pytest.raises(AutoReconnect):
                them.insert_many([{"_id": 1}, {"_id": 2}])
            assert [one["_id"] for one in them.find(batch_size=1)] == [1, 2]
            them.insert_one({"_id": 3})
            client.drop_database("reply_dropper")
