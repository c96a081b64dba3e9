"""The stage of a scenario: servers, receiver, workers and producers of its own.

Owns the processes and what is read from them. Knows nothing of the `scenarios`, nor what is right (`judge`). A
stage belongs to the thread that makes it: Linux ends its processes with that thread.
"""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pymongo
import redis
from bson import ObjectId

from tests.fairness.judge import Arrival
from tests.fairness.producer import Plan, Stream
from tests.fairness.receiver import Behaviour
from tests.lab.quick_http import command
from tests.lab.servers import Servers
from tests.lab.worker import Worker, environment, run_module, wait_until
from webhooks.local.processes import kill_group, last_lines

#: Seconds for whatever should happen soon, on a machine that runs other things beside.
_SOON_S = 60.0
#: Of a machine with two cores, while nothing else runs.
_LOADERS = 2

#: The trigger that asks for an event's type.
_TRIGGERS = {
    "COTTask": "create-edit-delete-task",
    "COTUser": "create-edit-delete-user",
    "COTSurvey": "create-edit-delete-survey",
    "COTProperty": "create-edit-delete-property",
    "COTNote": "create-edit-delete-note",
}
TYPES = tuple(_TRIGGERS)


@dataclass(frozen=True, slots=True)
class Hook:
    """A webhook, at an endpoint of its own, that gets all events of one type of its company."""

    path: str
    company: ObjectId = field(default_factory=ObjectId)
    type: str = "COTTask"
    #: Further fields of its document, such as ``ordered``.
    fields: Mapping[str, Any] = field(default_factory=dict)
    id: ObjectId = field(default_factory=ObjectId)

    def to_bson(self, port: int) -> dict[str, Any]:
        """Return it as MongoDB holds it."""
        return {
            "_id": self.id,
            "company": self.company,
            "isActive": True,
            "trigger": _TRIGGERS[self.type],
            "url": f"http://127.0.0.1:{port}{self.path}",
            "name": self.path,
            "description": "",
            "code": self.path.strip("/").replace("/", "_").lower(),
            "context": {},
            "__v": 0,
            **self.fields,
        }

    def stream(self, **options: Any) -> Stream:
        """Return the events that it gets, for a producer."""
        return Stream(str(self.company), self.type, **options)


class Producer:
    """A producer that runs."""

    def __init__(self, process: "subprocess.Popen[bytes]", report: Path, log: Path) -> None:
        self._process = process
        self._report = report
        self._log = log

    def stop(self) -> dict[int, float]:
        """Have it stop, and return what `wait` returns."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait(_SOON_S)

    def wait(self, timeout_s: float) -> dict[int, float]:
        """Wait until it has handed in all; return when each event was handed in, by number, in that order."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"a producer did not end within {timeout_s:g} s: {last_lines(self._log)}") from None
        if not self._report.exists():
            raise AssertionError(f"a producer died: {last_lines(self._log)}")
        return {number: sent_at for number, sent_at in json.loads(self._report.read_text())}  # noqa: C416 - pairs

    def kill(self) -> None:
        """End it and what it started."""
        kill_group(self._process)
        self._process.wait()


class Stage:
    """Everything that one scenario runs on. A context manager: leaving it leaves no process and no data behind."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Make it; entering it starts servers and receiver.

        Args:
            folder: of its own, not there yet.
            settings: of workers and producers, by their names without ``WEBHOOKS_``, in small letters.
        """
        folder.mkdir(parents=True)
        self.folder = folder
        self.servers = Servers(folder / "servers")
        self.settings = {
            "WEBHOOKS_BROKER_URL": self.servers.valkey.url,
            "WEBHOOKS_MONGODB_URL": self.servers.mongod.url,
            "WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8",
            **{f"WEBHOOKS_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.workers: list[Worker] = []
        self.hooks: list[Hook] = []
        self._mongo: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(self.servers.mongod.url, tz_aware=True)
        self._redis = redis.Redis.from_url(self.servers.valkey.url)
        self.database = self._mongo["webhooks"]
        self._receiver: subprocess.Popen[bytes] | None = None
        self._port = self._control_port = 0
        self._producers: list[Producer] = []

    def __enter__(self) -> Self:
        try:
            self.servers.start()
            self._receiver = run_module(
                ["tests.fairness.receiver"], self.settings, self.folder / "receiver.log", subprocess.PIPE
            )
            assert self._receiver.stdout is not None
            self._port, self._control_port = json.loads(self._receiver.stdout.readline())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ── Webhooks and events ─────────────────────────────────────────────────────────────────────────────────────────
    def add(self, hooks: Iterable[Hook]) -> None:
        """Add webhooks."""
        added = list(hooks)
        self.hooks += added
        self.database["webhooks"].insert_many([hook.to_bson(self._port) for hook in added])

    def start_producer(self, plan: Plan) -> Producer:
        """Have a producer carry out a plan."""
        name = f"producer{len(self._producers)}"
        report, log = self.folder / f"{name}.json", self.folder / f"{name}.log"
        producer = Producer(
            run_module(["tests.fairness.producer", str(report), plan.to_json()], self.settings, log), report, log
        )
        self._producers.append(producer)
        return producer

    def queue(self, streams: Sequence[Stream], count: int, first: int = 0) -> tuple[dict[int, float], float]:
        """Hand in so many events as fast as several producers can.

        Returns:
            When each was handed in, by number; and the seconds that it took.
        """
        begun = time.monotonic()
        producers = [
            self.start_producer(
                # The whole count is the upper limit of each one's share.
                Plan(tuple(streams), None, len(range(start, count, _LOADERS)), first + start, _LOADERS)
            )
            for start in range(_LOADERS)
        ]
        sent: dict[int, float] = {}
        for producer in producers:
            sent |= producer.wait(_SOON_S + count / 100)
        return sent, time.monotonic() - begun

    # ── The workers ─────────────────────────────────────────────────────────────────────────────────────────────────
    def start_workers(self, count: int) -> None:
        """Have so many workers, and return when all take messages."""
        for number in range(len(self.workers), count):
            worker = Worker(self.folder, self.settings, f"worker{number}")
            worker.env = {**environment(), **self.settings}
            self.workers.append(worker)
        idle = [(worker, len(worker.log())) for worker in self.workers if not worker.is_running()]
        for worker, _ in idle:
            worker.start(wait=False)
        for worker, before in idle:
            ready = f"{worker.name} ready"
            wait_until(lambda w=worker, b=before, r=ready: r in w.log()[b:], f"ready: {worker.log_path}", 2 * _SOON_S)

    def stop_workers(self) -> None:
        """End all workers as an operator does."""
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.stop()

    def reset(self) -> None:
        """End the workers, and forget all data: the next start is the first one."""
        for worker in self.workers:
            worker.kill()
        self._redis.flushall()
        for name in self.database.list_collection_names():
            self.database.drop_collection(name)
        self.hooks.clear()
        self.forget()

    # ── The receiver ────────────────────────────────────────────────────────────────────────────────────────────────
    def behave(self, behaviour: Behaviour, *paths: str) -> None:
        """Have endpoints behave so from now on."""
        command(self._control_port, {"do": "set", "paths": dict.fromkeys(paths, asdict(behaviour))})

    def counts(self) -> dict[str, dict[str, int]]:
        """Return what came to each path: `receiver.Counts`."""
        return command(self._control_port, {"do": "counts"})

    def count(self, path: str, what: str = "came") -> int:
        """Return one of the numbers that came to a path; 0 before anything came."""
        return self.counts().get(path, {}).get(what, 0)

    def arrivals(self) -> list[Arrival]:
        """Return every request since the beginning, or since `forget`."""
        return [Arrival(*record) for record in command(self._control_port, {"do": "records"})]

    def forget(self) -> None:
        """Have the receiver forget what came."""
        command(self._control_port, {"do": "forget"})

    # ── Time ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def run_for(self, seconds: float) -> None:
        """Let things go on; fail if a worker ends by itself meanwhile."""
        until = time.monotonic() + seconds
        while True:
            dead = [worker.name for worker in self.workers if not worker.is_running()]
            if dead:
                raise AssertionError(f"ended by themselves: {dead}; see {self.folder}")
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(0.5, left_s))

    def run_until(self, look: Callable[[], bool], timeout_s: float) -> bool:
        """Let things go on until something is true; return whether it came true in time."""
        until = time.monotonic() + timeout_s
        while not look():
            if time.monotonic() > until:
                return False
            self.run_for(0.1)
        return True

    def run_while_growing(self, look: Callable[[], int], enough: int, patience_s: float, at_most_s: float) -> int:
        """Let things go on until a number is large enough, does not grow any more, or the time is up; return it."""
        begun = grown_at = time.monotonic()
        seen = look()
        while seen < enough and time.monotonic() - grown_at < patience_s and time.monotonic() - begun < at_most_s:
            self.run_for(0.25)
            found = look()
            if found > seen:
                seen, grown_at = found, time.monotonic()
        return seen

    def close(self) -> None:
        """End every process, whatever state it is in, and delete the servers' data. The logs stay."""
        for worker in self.workers:
            worker.kill()
        for producer in self._producers:
            producer.kill()
        if self._receiver is not None:
            kill_group(self._receiver)
            self._receiver.wait()
            if self._receiver.stdout is not None:
                self._receiver.stdout.close()
        self._mongo.close()
        self._redis.close()
        self.servers.discard()
