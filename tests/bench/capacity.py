"""What a rate of deliveries takes in workers, Redis, MongoDB, storage and network, computed from measured costs.

`FORMULAS` is the one place with the rules: Python evaluates them here, and the page has them as a script.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Deliveries per second that a page shows.
RATES = (10_000, 1_000_000)
#: Figures of a run that the rules use, by their keys, beside ``event_bytes``, the bytes of an event's JSON.
COSTS = (
    "cpu_workers",
    "cpu_valkey",
    "cpu_queueing",
    "cpu_mongod",
    "memory",
    "redis_bytes",
    "waiting_redis",
    "waiting_mongodb",
    "log_bytes",
    "log_index_bytes",
    "traffic_redis",
    "traffic_mongodb",
)


@dataclass(frozen=True, slots=True)
class Assumption:
    """What no run can know, and a reader may change."""

    key: str
    text: str
    unit: str
    default: float
    lowest: float
    highest: float
    #: Why the default is what it is.
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
DEFAULTS = {assumption.key: assumption.default for assumption in ASSUMPTIONS}

#: In the order in which they are computed. ``rate`` is deliveries per second. CPU times are µs, ``memory`` is in 2^20
#: bytes. A first attempt and a retry are taken to cost the same. The default of ``WEBHOOKS_RETRY_DELAY_S`` is 30.
FORMULAS: Mapping[str, str] = {
    "share": "utilisation / 100",
    "retries": "rate * retry_percent / 100",
    "attempts": "rate + retries",
    # Python uses about one core per process.
    "processes": "ceil(attempts * cpu_workers / 1e6 / share)",
    "hosts": "ceil(processes / cores)",
    # Little's law.
    "in_flight": "attempts * answer_ms / 1e3",
    "concurrency": "ceil(in_flight / processes / share)",
    "host_memory": "ceil(processes / hosts) * memory * 1048576 / 1e9",
    "waiting": "retries * 30",
    "queued": "rate * backlog_s * redis_bytes + waiting * waiting_redis",
    # Redis runs commands in one thread.
    "redis_by_cpu": "ceil((attempts * cpu_valkey + rate * cpu_queueing) / 1e6 / share)",
    "redis_by_memory": "ceil(queued / (redis_gb * 1e9))",
    "redis_shards": "max(redis_by_cpu, redis_by_memory)",
    "logs_per_s": "attempts * (log_bytes + log_index_bytes)",
    "stored": "logs_per_s * 86400 * ttl_days + waiting * waiting_mongodb",
    "mongodb_by_cpu": "ceil(attempts * cpu_mongod / 1e6 / share / mongodb_cores)",
    "mongodb_by_disk": "ceil(stored / (mongodb_tb * 1e12))",
    "mongodb_shards": "max(mongodb_by_cpu, mongodb_by_disk)",
    "mongodb_hosts": "mongodb_shards * copies",
    "log_per_day": "logs_per_s * 86400 / 1e12",
    "log_kept": "stored / 1e12",
    "log_copies": "stored * copies / 1e12",
    "log_write": "logs_per_s / mongodb_shards / 1e6",
    "to_receivers": "attempts * (event_bytes + head_bytes) / 1.25e8",
    "to_servers": "attempts * (traffic_redis + traffic_mongodb) / 1.25e8",
    "per_host": "(to_receivers + to_servers) / hosts",
    "cells": "max(redis_shards, mongodb_shards)",
}


def need(costs: Mapping[str, float], given: Mapping[str, float], rate: float) -> dict[str, float]:
    """Compute what a rate takes.

    Args:
        costs: by the keys of `COSTS`, and ``event_bytes``.
        given: by the keys of `ASSUMPTIONS`.
        rate: deliveries per second.

    Returns:
        A number for each of `FORMULAS`.
    """
    values: dict[str, float] = {**costs, **given, "rate": rate}
    for key, formula in FORMULAS.items():
        values[key] = eval(formula, {"ceil": math.ceil, "max": max}, values)
    return {key: values[key] for key in FORMULAS}


def script() -> str:
    """Return `need` as a function of JavaScript, for the page."""
    lines = "\n".join(f"    const {key} = {formula};" for key, formula in FORMULAS.items())
    return f"""function need(costs, given, rate) {{
    const ceil = Math.ceil, max = Math.max;
    const {{{", ".join(COSTS)}, event_bytes}} = costs;
    const {{{", ".join(DEFAULTS)}}} = given;
{lines}
    return {{{", ".join(FORMULAS)}}};
  }}"""


@dataclass(frozen=True, slots=True)
class Line:
    """One number of `need`, for people."""

    key: str
    text: str
    unit: str
    #: How it is computed, in words.
    rule: str


#: Lines that stand out.
MAIN = ("hosts", "processes", "concurrency", "redis_shards", "mongodb_shards", "log_per_day", "cells")
#: By heading.
LINES: Mapping[str, Sequence[Line]] = {
    "Workers": (
        Line("attempts", "Attempts per second", "/s", "deliveries and their retries"),
        Line("hosts", "Worker hosts", "", "processes ÷ cores of a host"),
        Line("processes", "Worker processes", "", "attempts × CPU time ÷ utilisation; a process uses one core at most"),
        Line("concurrency", "WEBHOOKS_CONCURRENCY of each", "", "attempts under way ÷ processes ÷ utilisation"),
        Line("in_flight", "Attempts under way", "", "attempts × answer time"),
        Line(
            "host_memory",
            "Memory of a host's workers",
            "GB",
            "its processes × memory of one, at the concurrency of the run",
        ),
    ),
    "Redis": (
        Line("redis_shards", "Redis shards", "", "the larger of the next two"),
        Line(
            "redis_by_cpu",
            "… by CPU time",
            "",
            "attempts × CPU time of Redis, and of queueing, ÷ utilisation; Redis works in one thread",
        ),
        Line(
            "redis_by_memory", "… by memory", "", "what queues up and what waits 30 s for its retry ÷ memory of a shard"
        ),
    ),
    "MongoDB": (
        Line("mongodb_shards", "MongoDB shards", "", "the larger of the next two"),
        Line("mongodb_by_cpu", "… by CPU time", "", "attempts × CPU time of mongod ÷ utilisation ÷ cores of a host"),
        Line("mongodb_by_disk", "… by disk", "", "what is kept ÷ disk of a host"),
        Line("mongodb_hosts", "MongoDB hosts", "", "shards × copies"),
    ),
    "Storage of logs": (
        Line(
            "log_per_day",
            "Logs per day",
            "TB",
            "attempts of a day × (a log and its part of the indexes), before compression",
        ),
        Line("log_kept", "Kept at one time", "TB", "logs per day × days, and what is pending"),
        Line("log_copies", "The same, all copies", "TB", "kept × copies"),
        Line("log_write", "Written to a shard", "MB/s", "logs ÷ shards; the journal doubles it"),
    ),
    "Network": (
        Line(
            "to_receivers",
            "Workers and receivers",
            "Gbit/s",
            "attempts × (an event and the heads); no TLS, no connecting",
        ),
        Line(
            "to_servers", "Workers and servers", "Gbit/s", "attempts × traffic with Redis and MongoDB; no replication"
        ),
        Line("per_host", "Of one worker host", "Gbit/s", "both ÷ hosts"),
    ),
    "Cells": (Line("cells", "Cells", "", "the larger number of shards; see below what a cell is"),),
}
_SHOWN = {line.key for lines in LINES.values() for line in lines}


def sources_of(key: str) -> list[str]:
    """Return the costs and assumptions that a number comes from, as far as no other shown number has them."""
    found: list[str] = []
    for name in re.findall(r"[a-z_]+[a-z]", FORMULAS[key]):
        names = [name] if name in COSTS or name in DEFAULTS else []
        if name in FORMULAS and name not in _SHOWN:
            names = sources_of(name)
        found += [other for other in names if other not in found]
    return found


def show(value: float) -> str:
    """Write a number for people: three significant digits if it is small."""
    if value == 0 or value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
