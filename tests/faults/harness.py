"""The stage of one row: servers, workers, receiver and producer of its own, with a supervisor's hand on the workers.

Owns the processes and what is read from them. Knows nothing of the single faults (`strikes`), nor what is right
(`judge`). A stage belongs to the thread that makes it: Linux ends its processes with that thread.
"""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pymongo
import redis
from bson import ObjectId
from pymongo.errors import PyMongoError

from tests.faults.judge import Key, Receipts
from tests.faults.producer import number_of
from tests.lab.quick_http import command
from tests.lab.reply_dropper import MongoWire, RedisWire, ReplyDropper, name_mongodb_write
from tests.lab.servers import Server, Servers
from tests.lab.worker import Worker, environment, wait_until
from webhooks.config import Settings
from webhooks.local import servers
from webhooks.local.processes import kill_group, spawn
from webhooks.store.gates import GateStore
from webhooks.transport import scripts

#: Short, so that a row is soon over; what follows from them (claims, visibility timeout) is the product's to derive.
SETTINGS = {
    "WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8",
    "WEBHOOKS_RETRY_DELAY_S": "2",
    "WEBHOOKS_TOTAL_TIMEOUT_S": "2",
    "WEBHOOKS_CONNECT_TIMEOUT_S": "1",
    "WEBHOOKS_SWEEP_INTERVAL_S": "1",
}
WORKERS = 2
THREADS = 16
#: Fields of the webhooks, besides those that all have.
WEBHOOKS: Sequence[Mapping[str, Any]] = ({}, {})

#: Seconds after which a supervisor starts a worker again.
_RESTART_AFTER_S = 0.5
#: Seconds between two looks at the workers.
_LOOK_EVERY_S = 0.1
#: Seconds between two replies that are dropped.
DROP_EVERY_S = 0.3
#: Bytes of the reply of a take that took something.
_HAS_MESSAGES_BYTES = 500
#: What `settle` must see so many times in a row: a message may be on its way between two places.
_LOOKS_TO_BE_SURE = 4
#: How keys of Redis begin that hold messages, besides what is in workers' hands.
HOLD_MESSAGES = ("webhooks.deliver", "webhooks.send", "webhooks.lane.", "webhooks.parked.")
_ROOT = Path(__file__).parents[2]


class Cancelled(Exception):
    """Whoever runs the matrix wants it to end."""


class Stage:
    """Everything that one row runs on. A context manager: leaving it leaves no process and no data behind."""

    def __init__(
        self,
        folder: Path,
        *,
        cancelled: threading.Event,
        mongodb_timeout_s: float,
        settings: Mapping[str, str] | None = None,
        webhooks: Sequence[Mapping[str, Any]] = WEBHOOKS,
        has_stepped_clocks: bool = False,
        can_drop_replies: bool = False,
    ) -> None:
        """Make it; entering it starts everything.

        Args:
            folder: of its own, not there yet.
            cancelled: once set, whatever runs here ends by raising `Cancelled`.
            mongodb_timeout_s: the product's setting, of which claims and visibility timeout are made.
            settings: the row's own; None for none.
            webhooks: fields of each, besides those that all have.
            has_stepped_clocks: whether `step_clock` is to work; the workers' clock is another one then.
            can_drop_replies: whether `drop_replies` is to work; producer and workers reach the servers through it.
        """
        folder.mkdir(parents=True)
        self.folder = folder
        self.company = ObjectId()
        self.servers = Servers(folder / "servers")
        #: How often the reply of each write is to be dropped, by its name.
        self._drops_left: Counter[str] = Counter()
        self._drop_after = 0.0
        self.fronts = self._make_fronts() if can_drop_replies else []
        ports = [front.port for front in self.fronts] or [self.servers.valkey.port, self.servers.mongod.port]
        self.settings = {
            **SETTINGS,
            "WEBHOOKS_BROKER_URL": servers.valkey_url(ports[0]),
            "WEBHOOKS_MONGODB_URL": servers.mongodb_url(ports[1]),
            "WEBHOOKS_CONCURRENCY": str(THREADS),
            "WEBHOOKS_MONGODB_TIMEOUT_S": f"{mongodb_timeout_s:g}",
            **(settings or {}),
        }
        self.derived = Settings(**{k.removeprefix("WEBHOOKS_").lower(): v for k, v in self.settings.items()})  # pyright: ignore[reportArgumentType]
        self.clocks = [folder / f"clock{number}" for number in range(WORKERS)]
        self.workers = []
        for number, clock in enumerate(self.clocks):
            clock.write_bytes(struct.pack("d", 0.0))
            extra = {}
            if has_stepped_clocks:
                extra = {
                    "PYTHONPATH": str(Path(__file__).parent / "stepped_clock"),
                    "WEBHOOKS_TEST_CLOCK": str(clock),
                }
            worker = Worker(folder, {**self.settings, **extra}, f"worker{number}")
            worker.env = {**environment(), **self.settings, **extra}
            self.workers.append(worker)
        self.mongo: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
            self.servers.mongod.url, tz_aware=True, serverSelectionTimeoutMS=3_000, socketTimeoutMS=20_000
        )
        self.redis = redis.Redis.from_url(self.servers.valkey.url, socket_timeout=20, socket_connect_timeout=3)
        self.database = self.mongo["webhooks"]
        self.gates = GateStore(self.database)
        self.webhooks = {ObjectId(): f"/{number}" for number in range(len(webhooks))}
        self._fields = webhooks
        #: Workers that ended though nobody struck them; the supervisor starts those as well.
        self.died_by_themselves = 0
        #: Unix time; None before.
        self.fault_ended_at: float | None = None
        self._cancelled = cancelled
        self._safe: set[int] = set()
        self._struck: set[int] = set()
        self._dead_since: dict[int, float] = {}
        self._replica: Server | None = None
        self._receiver: subprocess.Popen[bytes] | None = None
        self._control_port = 0
        self._ways = 1
        self._producer: subprocess.Popen[bytes] | None = None
        self._report = folder / "producer.json"
        self._handed_in: dict[str, Any] = {"accepted": [], "refused": []}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        self.servers.start()
        self._receiver = self._run(["tests.faults.receiver"], "receiver", subprocess.PIPE)
        assert self._receiver.stdout is not None
        port, self._control_port = json.loads(self._receiver.stdout.readline())
        self.database["webhooks"].insert_many(
            {
                "_id": webhook_id,
                "company": self.company,
                "isActive": True,
                "trigger": "create-edit-delete-task",
                "url": f"http://127.0.0.1:{port}{path}",
                "name": path,
                "description": "",
                "code": f"code_{path[1:]}",
                "context": {},
                "__v": 0,
                **fields,
            }
            for (webhook_id, path), fields in zip(self.webhooks.items(), self._fields, strict=True)
        )
        for worker in self.workers:
            worker.start(wait=False)
        for worker in self.workers:
            wait_until(lambda w=worker: f"{w.name} ready" in w.log(), f"ready: {worker.log_path}", 120)

    def _run(self, arguments: list[str], name: str, stdout: int | None = None) -> "subprocess.Popen[bytes]":
        env = {**environment(), **self.settings, "PYTHONPATH": str(_ROOT)}
        with (self.folder / f"{name}.log").open("ab") as log:
            return spawn([sys.executable, "-m", *arguments], env=env, cwd=_ROOT, stdout=stdout or log)

    # ── The load ────────────────────────────────────────────────────────────────────────────────────────────────────
    def start_load(self, events_per_s: float, ways: Sequence[str]) -> None:
        """Start the producer, and return when its first event has come through.

        Args:
            events_per_s: how many.
            ways: how it hands them in, by turns: see `producer`.
        """
        arguments = [str(events_per_s), str(self.company), str(self._report), *ways]
        self._ways = len(ways)
        self._producer = self._run(["tests.faults.producer", *arguments], "producer")
        self.run_until(lambda: len(self.receipts()) > 0, "the first delivery has come", 60)

    def stop_load(self) -> None:
        """Stop the producer, and read what it says was accepted."""
        assert self._producer is not None
        self._producer.send_signal(signal.SIGTERM)
        self.run_until(self._report.exists, "the producer has reported", 60)
        self._handed_in = json.loads(self._report.read_text())

    @property
    def accepted(self) -> list[tuple[int, float, float]]:
        """Number, start and end of handing it in (Unix time) of each event that was accepted."""
        return [tuple(entry) for entry in self._handed_in["accepted"]]

    @property
    def refusals(self) -> int:
        """How many times the producer was told that an event was not accepted."""
        return len(self._handed_in["refused"])

    def lines(self) -> list[list[Key]]:
        """Return what ordered webhooks are to get in the order of numbers: events that were handed in in one way.

        Those that were refused first may be queued twice, so nobody knows their place.
        """
        numbers = sorted({number for number, _, _ in self.accepted} - set(self._handed_in["refused"]))
        ordered = [at for at, fields in zip(self.webhooks.values(), self._fields, strict=True) if fields.get("ordered")]
        return [
            [(number, at) for number in numbers if number % self._ways == way]
            for at in ordered
            for way in range(self._ways)
        ]

    def set_receiver(self, mode: str) -> None:
        """Have the receiver behave otherwise: see `receiver`."""
        self._ask_receiver(mode)

    def receipts(self) -> dict[Key, Receipts]:
        """Ask the receiver what it counted."""
        return {
            (number, path): Receipts(ok, failed, first_ok_at, ids)
            for number, path, ok, failed, first_ok_at, ids in self._ask_receiver(None)
        }

    def _ask_receiver(self, mode: str | None) -> Any:
        return command(self._control_port, {"mode": mode})

    # ── Time ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def run_for(self, seconds: float) -> None:
        """Let things go on, and start dead workers again, as a supervisor does."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._supervise()
            time.sleep(min(_LOOK_EVERY_S, max(0.0, until - time.monotonic())))

    def run_until(self, look: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Let things go on until something is true.

        Raises:
            AssertionError: it did not come true in time.
        """
        give_up_at = time.monotonic() + timeout_s
        while not look():
            if time.monotonic() > give_up_at:
                raise AssertionError(f"not within {timeout_s:g} s: {what}; see {self.folder}")
            self.run_for(0.25)

    def fault_has_ended(self) -> None:
        """Note that from now on nothing is broken any more."""
        self.fault_ended_at = time.time()

    def settle(self, patience_s: float, at_most_s: float) -> bool:
        """Wait until nothing is owed and no message is left.

        Args:
            patience_s: seconds without any change until nothing more is hoped for: a slow machine may have a backlog.
            at_most_s: seconds in all.

        Returns:
            Whether that came true.
        """
        begun = changed_at = time.monotonic()
        seen, left = 0, (-1, -1)
        while seen < _LOOKS_TO_BE_SURE:
            present = time.monotonic()
            if present - changed_at > patience_s or present - begun > at_most_s:
                return False
            try:
                found = self.count_queued(), self.database["deliveries"].count_documents(OWED)
            except (PyMongoError, redis.RedisError):
                found = (-1, -1)  # it is back only now, or slow
            if found != left:
                left, changed_at = found, present
            seen = seen + 1 if found == (0, 0) else 0
            self.run_for(0.5)
        return True

    # ── The workers ─────────────────────────────────────────────────────────────────────────────────────────────────
    def kill_worker(self, number: int) -> None:
        """End a worker as a crash does; it is started again soon."""
        self._struck.add(number)
        self.workers[number].kill()

    def pause_worker(self, number: int) -> None:
        """Stop a worker in its tracks, as a suspended machine does."""
        os.kill(self.workers[number].pid, signal.SIGSTOP)

    def resume_worker(self, number: int) -> None:
        """Let it go on after `pause_worker`."""
        os.kill(self.workers[number].pid, signal.SIGCONT)

    def count_claims(self, number: int) -> int:
        """Count the attempts that a worker is making."""
        return self.database["deliveries"].count_documents({"claim.worker": self.workers[number].name})

    def terminate_worker(self, number: int) -> None:
        """Ask a worker to end, as a deployment does; it is started again when it has."""
        self._struck.add(number)
        self.workers[number].terminate()
        self.run_until(lambda: number not in self._struck, f"worker {number} has ended", 90)

    def is_worker_up(self, number: int) -> bool:
        """Say whether the worker takes messages, since its last start."""
        worker = self.workers[number]
        started, ready = (worker.log().rfind(mark) for mark in (_STARTED, f"{worker.name} ready"))
        return worker.is_running() and ready > started

    def _supervise(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled
        for number, worker in enumerate(self.workers):
            if worker.is_running():
                continue
            present = time.monotonic()
            if present - self._dead_since.setdefault(number, present) < _RESTART_AFTER_S:
                continue
            if number not in self._struck:
                self.died_by_themselves += 1
            self._struck.discard(number)
            del self._dead_since[number]
            with worker.log_path.open("a") as log:
                log.write(f"{_STARTED}\n")
            worker.start(wait=False)

    def step_clock(self, number: int, ahead_s: float) -> None:
        """Set the clock of a worker so many seconds ahead of the true time."""
        with self.clocks[number].open("r+b") as file:  # the same file: it is mapped
            file.write(struct.pack("d", ahead_s))

    def copy_parked(self, key: str) -> None:
        """Queue once more what waits for its time."""
        waiting: Any = self.redis.zrange(key, 0, -1, withscores=True)
        for member, at in waiting:
            head, _, text = member.partition(b":")
            message = json.loads(text)
            message["properties"]["delivery_tag"] += "-again"
            self.redis.zadd(key, {head + b":" + json.dumps(message).encode(): at})

    def drop_replies(self, times: Mapping[str, int]) -> None:
        """Have connections die after writes, before their replies: so often by the write's name, one at a time."""
        self._drops_left = Counter(times)
        give_up_at = time.monotonic() + 240
        while self._drops_left.total():
            if time.monotonic() > give_up_at:
                raise AssertionError(f"never came, so no reply was dropped: {+self._drops_left}")
            self.run_for(0.25)

    def _make_fronts(self) -> list[ReplyDropper]:
        names = {sha: name for name, text in vars(scripts).items() if (sha := scripts.SHAS.get(str(text)))}

        def name_script(words: tuple[bytes, ...]) -> str:
            name = names.get(words[1].decode(), "") if words[0] == b"EVALSHA" else ""
            return f"{name} {words[3].decode()}" if name == "PUT" else name

        return [
            ReplyDropper(self.servers.valkey.port, RedisWire(), name_script, self._is_to_be_dropped),
            ReplyDropper(self.servers.mongod.port, MongoWire(), name_mongodb_write, self._is_to_be_dropped),
        ]

    def _is_to_be_dropped(self, name: str, reply: bytes) -> bool:
        if not self._drops_left[name] or time.monotonic() < self._drop_after:
            return False
        if name == "TAKE" and len(reply) < _HAS_MESSAGES_BYTES:
            return False
        self._drop_after = time.monotonic() + DROP_EVERY_S
        self._drops_left[name] -= 1
        return True

    def note_safe_events(self) -> None:
        """Note which events MongoDB knows now: those outlive the loss of Redis's data."""
        self._safe = self.numbers_in_mongodb()

    def promised(self, *, only_safe: bool) -> set[Key]:
        """Return the deliveries that were accepted; of the time before the fault's end only those that were safe."""
        ended_at = self.fault_ended_at or 0.0
        return {
            (number, path)
            for number, started_at, _ in self.accepted
            if not only_safe or number in self._safe or started_at > ended_at
            for path in self.webhooks.values()
        }

    def forget_redis(self) -> None:
        """Delete what Redis keeps on disk, while it does not run."""
        if self.servers.valkey.is_running():
            raise RuntimeError("Redis still runs")
        for path in (self.folder / "servers" / "valkey").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def start_replica(self) -> Server:
        """Start a second Redis that copies the first one; return when it has all that the first one has."""
        # Without this the first one waits some seconds for more replicas to ask.
        self.redis.config_set("repl-diskless-sync-delay", 0)
        replica = Server("replica", servers.valkey_command, servers.valkey_url, self.folder / "servers")
        self._replica = replica
        replica.start()
        with redis.Redis.from_url(replica.url) as link:
            link.replicaof(servers.LOOPBACK, self.servers.valkey.port)  # pyright: ignore[reportArgumentType]

            def is_copy() -> bool:
                state: Any = link.info("replication")
                return state["master_link_status"] == "up"

            self.run_until(is_copy, "the replica has a copy", 60)
        return replica

    # ── What is there ───────────────────────────────────────────────────────────────────────────────────────────────
    def count_queued(self) -> int:
        """Count the messages that Redis holds: queued, parked, in a worker's hands."""
        count = 0
        for key in self.redis.scan_iter(count=1000):
            name = bytes(key).decode()
            if name.startswith("webhooks.") and not name.startswith(HOLD_MESSAGES):
                continue
            if name.startswith("_kombu.") or name == "unacked_index":
                continue
            kind = bytes(self.redis.type(key))  # pyright: ignore[reportArgumentType]
            count_of = {b"list": self.redis.llen, b"hash": self.redis.hlen, b"zset": self.redis.zcard}.get(kind)
            count += count_of(key) if count_of else 0  # pyright: ignore[reportOperatorIssue, reportArgumentType]
        return count

    def numbers_in_mongodb(self) -> set[int]:
        """Return the events of which MongoDB knows: owed, or attempted."""
        owed = self.database["deliveries"].distinct("event_id")
        done = self.database["webhooklogs"].distinct("attempt.event_id")
        return {number_of(name) for name in [*owed, *done]}

    # ── The end ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def close(self) -> None:
        """End every process, whatever state it is in, and delete the servers' data. The logs stay."""
        for worker in self.workers:
            worker.kill()
        for process in (self._producer, self._receiver):
            if process is not None:
                kill_group(process)
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()
        for front in self.fronts:
            front.close()
        self.mongo.close()
        self.redis.close()
        if self._replica is not None:
            self._replica.discard()
        self.servers.discard()


#: What a worker's log says at each start: written by the harness.
_STARTED = "──── started again"
#: The deliveries that are owed.
OWED = {"due_at": {"$ne": None}}
