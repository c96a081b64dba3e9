"""What a rate of deliveries takes in workers, Redis, MongoDB, storage and network, from costs that were measured.

Pure: numbers in, numbers out. `page` shows them, and its script repeats `need` for rates and assumptions that a reader
types in; a test holds the two against each other. Each rule says what it leaves out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Seconds from a failed attempt to the next one: the default of ``WEBHOOKS_RETRY_DELAY_S``.
RETRY_DELAY_S = 30
#: Deliveries per second that a page shows.
RATES = (10_000, 1_000_000)

_DAY_S = 86_400
_GB, _TB, _GBIT = 1e9, 1e12, 1e9 / 8
_MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Costs:
    """What one delivery costs, as a run measured it. All are more than 0."""

    #: Microseconds of CPU time per delivery.
    worker_us: float
    redis_us: float
    #: The same, for taking its event from a producer, in bulk.
    redis_queueing_us: float
    mongodb_us: float
    #: MB (2^20 bytes) of one worker process.
    worker_mb: float
    #: Bytes in Redis of a delivery that is queued, and of one that waits for its retry.
    queued_bytes: float
    waiting_redis_bytes: float
    #: Bytes in MongoDB of a delivery that waits, of a log, and of a log's part in the indexes; before compression.
    waiting_mongodb_bytes: float
    log_bytes: float
    log_index_bytes: float
    #: Bytes between workers and the servers per delivery, both ways.
    redis_traffic_bytes: float
    mongodb_traffic_bytes: float
    #: Bytes of an event's JSON.
    event_bytes: float


@dataclass(frozen=True, slots=True)
class Assumption:
    """What no run can know, and a reader may change."""

    key: str
    text: str
    unit: str
    default: float
    #: The least and the most that it may be.
    lowest: float
    highest: float
    #: Why it is what it is.
    reason: str


ASSUMPTIONS: Sequence[Assumption] = (
    Assumption("answer_ms", "Receivers' mean answer time", "ms", 200, 1, 15_000, "yours to measure: the log has it"),
    Assumption(
        "retry_percent", "Retries", "% of deliveries", 5, 0, 300, "attempts beyond the first; four are the most"
    ),
    Assumption("utilisation", "Target utilisation", "%", 60, 1, 100, "of cores and of threads; the rest is for peaks"),
    Assumption("cores", "Cores of a worker host", "", 16, 1, 1_024, "a common size"),
    Assumption("backlog_s", "Queue to hold", "s", 600, 0, 604_800, "what waits while workers do not run"),
    Assumption("redis_gb", "Memory of a Redis shard", "GB", 16, 1, 10_000, "for data; rewriting its file needs more"),
    Assumption("mongodb_cores", "Cores of a MongoDB host", "", 16, 1, 1_024, "a common size"),
    Assumption("mongodb_tb", "Disk of a MongoDB host", "TB", 4, 0.1, 1_000, "for data and indexes"),
    Assumption("copies", "Copies of MongoDB's data", "", 3, 1, 50, "members of a replica set"),
    Assumption("ttl_days", "Days that logs are kept", "days", 30, 1, 3_650, "the default of WEBHOOKS_LOG_TTL_DAYS"),
    Assumption("head_bytes", "HTTP heads of an attempt", "bytes", 700, 0, 100_000, "request and answer, without TLS"),
)
#: By their keys, as a page has them before anybody changes one.
DEFAULTS = {assumption.key: assumption.default for assumption in ASSUMPTIONS}


def need(costs: Costs, given: dict[str, float], rate: float) -> dict[str, float]:
    """Compute what a rate takes.

    Attempts are taken to cost the same, whether they are the first or a retry.

    Args:
        costs: measured.
        given: a value for the key of each of `ASSUMPTIONS`.
        rate: deliveries per second.

    Returns:
        A number for the key of each of `LINES`, in its unit. Numbers of processes and the like are whole.
    """
    share = given["utilisation"] / 100
    retries = rate * given["retry_percent"] / 100
    attempts = rate + retries
    # Python uses about one core per process.
    processes = math.ceil(attempts * costs.worker_us / 1e6 / share)
    hosts = math.ceil(processes / given["cores"])
    # Little's law: what is under way is the rate times how long each takes.
    in_flight = attempts * given["answer_ms"] / 1e3
    waiting = retries * RETRY_DELAY_S
    queue_bytes = rate * given["backlog_s"] * costs.queued_bytes + waiting * costs.waiting_redis_bytes
    # Redis carries out commands in one thread.
    redis_by_cpu = math.ceil((attempts * costs.redis_us + rate * costs.redis_queueing_us) / 1e6 / share)
    redis_by_memory = math.ceil(queue_bytes / (given["redis_gb"] * _GB))
    log_bytes_per_s = attempts * (costs.log_bytes + costs.log_index_bytes)
    stored = log_bytes_per_s * _DAY_S * given["ttl_days"] + waiting * costs.waiting_mongodb_bytes
    mongodb_by_cpu = math.ceil(attempts * costs.mongodb_us / 1e6 / share / given["mongodb_cores"])
    mongodb_by_disk = math.ceil(stored / (given["mongodb_tb"] * _TB))
    redis_shards, mongodb_shards = max(redis_by_cpu, redis_by_memory), max(mongodb_by_cpu, mongodb_by_disk)
    to_receivers = attempts * (costs.event_bytes + given["head_bytes"]) / _GBIT
    to_servers = attempts * (costs.redis_traffic_bytes + costs.mongodb_traffic_bytes) / _GBIT
    return {
        "attempts": attempts,
        "hosts": hosts,
        "processes": processes,
        "concurrency": math.ceil(in_flight / processes / share),
        "in_flight": in_flight,
        "host_memory": math.ceil(processes / hosts) * costs.worker_mb * _MB / _GB,
        "cells": max(redis_shards, mongodb_shards),
        "redis_shards": redis_shards,
        "redis_by_cpu": redis_by_cpu,
        "redis_by_memory": redis_by_memory,
        "mongodb_shards": mongodb_shards,
        "mongodb_by_cpu": mongodb_by_cpu,
        "mongodb_by_disk": mongodb_by_disk,
        "mongodb_hosts": mongodb_shards * given["copies"],
        "log_per_day": log_bytes_per_s * _DAY_S / _TB,
        "log_kept": stored / _TB,
        "log_copies": stored * given["copies"] / _TB,
        "log_write": log_bytes_per_s / mongodb_shards / 1e6,
        "to_receivers": to_receivers,
        "to_servers": to_servers,
        "per_host": (to_receivers + to_servers) / hosts,
    }


@dataclass(frozen=True, slots=True)
class Line:
    """One number of `need`, for people."""

    key: str
    text: str
    unit: str
    #: How it is computed, in words.
    rule: str
    #: The figures of the run that it comes from.
    figures: tuple[str, ...] = ()
    #: The assumptions that it comes from.
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Lines that belong together."""

    text: str
    lines: tuple[Line, ...]


GROUPS: Sequence[Group] = (
    Group(
        "Workers",
        (
            Line("attempts", "Attempts per second", "/s", "deliveries and their retries", (), ("retry_percent",)),
            Line("hosts", "Worker hosts", "", "processes ÷ cores of a host", ("cpu_workers",), ("cores",)),
            Line(
                "processes",
                "Worker processes",
                "",
                "attempts × CPU time of workers ÷ utilisation; a process uses one core at most",
                ("cpu_workers",),
                ("retry_percent", "utilisation"),
            ),
            Line(
                "concurrency",
                "WEBHOOKS_CONCURRENCY of each",
                "",
                "attempts under way ÷ processes ÷ utilisation",
                ("cpu_workers",),
                ("answer_ms", "utilisation"),
            ),
            Line("in_flight", "Attempts under way", "", "attempts × answer time", (), ("answer_ms", "retry_percent")),
            Line(
                "host_memory",
                "Memory of a host's workers",
                "GB",
                "processes of a host × memory of one, at the concurrency of the run",
                ("memory",),
                ("cores",),
            ),
        ),
    ),
    Group(
        "Redis",
        (
            Line("redis_shards", "Redis shards", "", "the larger of the next two"),
            Line(
                "redis_by_cpu",
                "… by CPU time",
                "",
                "attempts × CPU time of Redis, and of queueing, ÷ utilisation; Redis works in one thread",
                ("cpu_valkey", "cpu_queueing"),
                ("utilisation", "retry_percent"),
            ),
            Line(
                "redis_by_memory",
                "… by memory",
                "",
                "what queues up and what waits 30 s for its retry ÷ memory of a shard",
                ("redis_bytes", "waiting_redis"),
                ("backlog_s", "redis_gb", "retry_percent"),
            ),
        ),
    ),
    Group(
        "MongoDB",
        (
            Line("mongodb_shards", "MongoDB shards", "", "the larger of the next two"),
            Line(
                "mongodb_by_cpu",
                "… by CPU time",
                "",
                "attempts × CPU time of mongod ÷ utilisation ÷ cores of a host",
                ("cpu_mongod",),
                ("utilisation", "mongodb_cores", "retry_percent"),
            ),
            Line(
                "mongodb_by_disk",
                "… by disk",
                "",
                "what is kept ÷ disk of a host",
                ("log_bytes", "log_index_bytes"),
                ("ttl_days", "mongodb_tb", "retry_percent"),
            ),
            Line("mongodb_hosts", "MongoDB hosts", "", "shards × copies", (), ("copies",)),
        ),
    ),
    Group(
        "Storage of logs",
        (
            Line(
                "log_per_day",
                "Logs per day",
                "TB",
                "attempts of a day × (a log and its part of the indexes), before compression",
                ("log_bytes", "log_index_bytes"),
                ("retry_percent",),
            ),
            Line(
                "log_kept",
                "Kept at one time",
                "TB",
                "logs per day × days, and what is owed",
                ("log_bytes", "log_index_bytes", "waiting_mongodb"),
                ("ttl_days",),
            ),
            Line("log_copies", "The same, all copies", "TB", "kept × copies", (), ("copies",)),
            Line(
                "log_write",
                "Written to a shard",
                "MB/s",
                "logs ÷ shards; the journal doubles it",
                ("log_bytes",),
            ),
        ),
    ),
    Group(
        "Network",
        (
            Line(
                "to_receivers",
                "Workers and receivers",
                "Gbit/s",
                "attempts × (an event and the heads); no TLS, no connecting",
                (),
                ("head_bytes", "retry_percent"),
            ),
            Line(
                "to_servers",
                "Workers and servers",
                "Gbit/s",
                "attempts × traffic with Redis and MongoDB; no replication",
                ("traffic_redis", "traffic_mongodb"),
                ("retry_percent",),
            ),
            Line("per_host", "Of one worker host", "Gbit/s", "both ÷ hosts"),
        ),
    ),
    Group(
        "Cells",
        (Line("cells", "Cells", "", "the larger of Redis shards and MongoDB shards; see below what a cell is"),),
    ),
)
LINES = tuple(line for group in GROUPS for line in group.lines)


def show(value: float) -> str:
    """Write a number for people: thousands apart, three digits that mean something where it is small."""
    if value == 0 or value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
