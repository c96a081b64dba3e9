"""What a run of the benchmark stands on: servers, receivers, workers and producers, and what is read from them.

Owns every process and file of a run: leaving the stage leaves none behind. Knows nothing of what is measured (`rows`).
"""

import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast
from urllib.parse import urlsplit

import redis
from redis.exceptions import RedisError

from webhooks import embedded
from webhooks.bench import processes
from webhooks.bench.events import Target, to_lines
from webhooks.bench.measures import RowFailed, Sample
from webhooks.bench.nginx import Nginx, find_nginx
from webhooks.bench.plan import DELAY_S, ENDPOINTS, Plan
from webhooks.bench.producer import Handing
from webhooks.errors import CannotStart
from webhooks.mongo import open_database, server_version, store_errors
from webhooks.supervisor import Program, Supervisor, last_lines
from webhooks.up import start_servers, worker_program
from webhooks.vault import Vault, new_key

_HERE = Path(__file__).parent
#: The receivers' paths: see `receiver`.
INSTANT, SLOW, HANG = "/", "/slow", "/hang"
#: The collections that logs are counted in.
LOGS, PLAIN_LOGS = "webhooklogs", "plainlogs"

#: Seconds for whatever comes up.
_SOON_S = 60.0
#: Seconds for one answer of a server, which may have a million messages to forget.
_ANSWER_S = 120.0
#: Seconds that a worker gets to end; hanging receivers are not waited for.
_GRACE_S = 3.0
#: Seconds between two looks.
_LOOK_EVERY_S = 0.05
#: From so many events on, two producers share them.
_SHARED_FROM = 2_000


class _Troupe(Supervisor):
    """Programs of one measurement. A Ctrl-C that comes while they end is not forgotten: it ends the whole run."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        if self._killing and kind is None:
            raise KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver that runs: the same paths at each of its ports."""

    #: ``nginx 1.22.1``, ``own``.
    kind: str
    ports: tuple[int, ...]
    pid: int

    def url(self, index: int, path: str) -> str:
        """Return the URL of an endpoint."""
        return f"http://{embedded.LOOPBACK}:{self.ports[index % len(self.ports)]}{path}"


class Crew:
    """Workers that run."""

    def __init__(self, supervisor: Supervisor, programs: Sequence[Program], folder: Path) -> None:
        self._supervisor = supervisor
        self._programs = programs
        self._folder = folder
        self._cpu = processes.Cpu()

    def check(self) -> None:
        """Make sure that all run.

        Raises:
            RowFailed: one has ended.
        """
        for program in self._programs:
            if not self._supervisor.is_running(program.name):
                raise RowFailed(f"{program.name} has ended: {_told(program)}")

    def wait_until_ready(self) -> None:
        """Wait until all take messages.

        Raises:
            RowFailed: one does not.
        """
        for program in self._programs:
            path = cast("Path", program.log_path)
            _wait(lambda p=path: " ready." in p.read_text(errors="replace"), f"{program.name} ready", self.check)

    def leaders(self) -> list[int]:
        """Return the ids of the processes that were started, of those that have said theirs."""
        found = []
        for program in self._programs:
            text = _pid_path(self._folder, program.name)
            if text.exists() and (pid := text.read_text().strip()):
                found.append(int(pid))
        return found

    def cpu_s(self) -> float:
        """Return the CPU seconds used by all until now."""
        return self._cpu.used_s(self.leaders())

    def memory_bytes(self) -> list[int]:
        """Return the memory of each worker with all its processes."""
        return [processes.memory_bytes(processes.members_of([leader])) for leader in self.leaders()]


class Stage:
    """Everything that a run stands on; made by `open_stage`."""

    def __init__(self, plan: Plan, folder: Path, supervisor: Supervisor, screen: Any, on_close: ExitStack) -> None:
        self._plan = plan
        self._folder = folder
        self._supervisor = supervisor
        self._screen = screen
        self._count = 0
        key = new_key()
        self.vault = Vault([key])
        redis_port, mongo_port = embedded.free_port(), embedded.free_port()
        self.broker_url = plan.broker_url or embedded.valkey_url(redis_port)
        self.mongodb_url = plan.mongodb_url or embedded.mongodb_url(mongo_port)
        start_servers(
            supervisor,
            folder,
            redis_port if plan.broker_url is None else None,
            mongo_port if plan.mongodb_url is None else None,
        )
        self._redis = _open_redis(self.broker_url)
        on_close.callback(self._redis.close)
        self._database = open_database(self.mongodb_url, _ANSWER_S)
        on_close.callback(self._database.client.close)
        self._refuse_used()
        on_close.callback(self._wipe)
        self._server_pids = self._find_servers()
        self._cpu = processes.Cpu()
        self._nginx = find_nginx()
        self._receivers: dict[str, Receiver] = {}
        #: The settings that are not the product's defaults, without the key of secrets and the servers.
        self.settings = {"WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8"}
        if plan.concurrency is not None:
            self.settings["WEBHOOKS_CONCURRENCY"] = str(plan.concurrency)
        self._env = {
            **_environment(),
            **self.settings,
            "WEBHOOKS_BROKER_URL": self.broker_url,
            "WEBHOOKS_MONGODB_URL": self.mongodb_url,
            "WEBHOOKS_ENCRYPTION_KEY": key,
        }
        self._plain_folder = folder / "plain"
        self._plain_folder.mkdir()
        shutil.copy(_HERE / "yardsticks.py", self._plain_folder)
        self._plain_env = {
            **_environment(),
            "BENCH_BROKER_URL": self.broker_url,
            "BENCH_MONGODB_URL": self.mongodb_url,
        }

    # ── Servers ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def versions(self) -> dict[str, str]:
        """Return what the servers are."""
        facts = cast("dict[str, Any]", self._redis.info("server"))
        name = str(facts.get("server_name", "redis"))
        return {
            "broker": f"{name} {facts.get(f'{name}_version', facts.get('redis_version'))}",
            "mongod": server_version(self._database),
            "nginx": "none"
            if self._nginx is None
            else f"{self._nginx.version} {'with' if self._nginx.echo else 'without'} echo",
        }

    def reset(self) -> None:
        """Forget all data; no worker may run."""
        with _broker_errors():
            self._redis.flushdb()
        with store_errors():
            for name in self._database.list_collection_names():
                self._database.drop_collection(name)

    def redis_bytes(self) -> int:
        """Return the memory that Redis uses for its data."""
        return int(cast("dict[str, Any]", self._redis.info("memory"))["used_memory"])

    def logged(self, collection: str) -> int:
        """Count logs, cheaply."""
        with store_errors():
            return self._database[collection].estimated_document_count()

    def count(self, collection: str, query: Mapping[str, Any]) -> int:
        """Count documents, exactly."""
        with store_errors():
            return self._database[collection].count_documents(query)

    def _refuse_used(self) -> None:
        """Make sure that what is wiped afterwards holds nothing.

        Raises:
            CannotStart: it does.
        """
        with _broker_errors():
            keys = cast("int", self._redis.dbsize())
        if keys:
            raise CannotStart(
                "the benchmark needs a Redis database of its own, which it wipes: this one holds keys; give the number "
                "of an empty one, such as redis://host:6379/15"
            )
        with store_errors():
            if self._database.list_collection_names():
                raise CannotStart(
                    f"the benchmark needs a MongoDB database of its own, which it wipes: {self._database.name} holds "
                    "collections; give the name of a new one"
                )

    def _wipe(self) -> None:
        """Leave nothing in servers that somebody else runs."""
        if self._plan.broker_url is not None:
            with _broker_errors():
                self._redis.flushdb()
        if self._plan.mongodb_url is not None:
            with store_errors():
                self._database.client.drop_database(self._database.name)

    def _find_servers(self) -> dict[str, int]:
        """Return the processes of the servers that are our own."""
        found = {}
        if self._plan.broker_url is None:
            found["valkey"] = int(cast("dict[str, Any]", self._redis.info("server"))["process_id"])
        if self._plan.mongodb_url is None:
            found["mongod"] = int(self._database.client.admin.command("serverStatus")["pid"])
        return found

    def _wait_for_rewrite(self) -> None:
        """Wait until Redis has done rewriting its file, which takes a core for a while."""

        def is_done() -> bool:
            facts = cast("dict[str, Any]", self._redis.info("persistence"))
            return not facts.get("aof_rewrite_in_progress") and not facts.get("aof_rewrite_scheduled")

        _wait(is_done, "the broker to rewrite its file", lambda: None, _ANSWER_S)

    # ── Receivers ───────────────────────────────────────────────────────────────────────────────────────────────────
    def receiver(self, *paths: str) -> Receiver:
        """Return a receiver that has these paths: nginx where it can, else our own."""
        if self._nginx is not None and (self._nginx.echo or set(paths) <= {INSTANT}):
            if "nginx" not in self._receivers:
                self._receivers["nginx"] = self._start_nginx(self._nginx)
            return self._receivers["nginx"]
        return self.own_receiver()

    def own_receiver(self) -> Receiver:
        """Return the receiver that notes what comes."""
        if "own" not in self._receivers:
            self._receivers["own"] = self._start_own()
        return self._receivers["own"]

    def arrivals(self) -> list[tuple[int, float, float]]:
        """Return what came to our own receiver since the last time: number, sent at, arrived at."""
        receiver = self.own_receiver()
        with socket.create_connection((embedded.LOOPBACK, receiver.ports[0]), timeout=_SOON_S) as link:
            link.sendall(b"POST /arrivals HTTP/1.1\r\n\r\n")
            data = b""
            while True:
                head, separator, body = data.partition(b"\r\n\r\n")
                if separator and len(body) >= int(head.rpartition(b": ")[2]):
                    return [(number, sent_at, at) for number, sent_at, at in json.loads(body)]
                data += link.recv(1 << 20)

    def _start_nginx(self, nginx: Nginx) -> Receiver:
        folder = self._folder / "nginx"
        folder.mkdir()
        ports = _free_ports(ENDPOINTS)
        (folder / "nginx.conf").write_text(nginx.configuration(ports, DELAY_S))
        pid_path = folder / "nginx.pid"
        self._supervisor.start(
            Program(
                "nginx",
                nginx.command(folder),
                _environment(),
                cwd=folder,
                ready=lambda: pid_path.exists() and bool(pid_path.read_text().strip()),
                log_path=self._folder / "nginx.log",
                restart=False,
            )
        )
        return Receiver(f"nginx {nginx.version}", ports, int(pid_path.read_text()))

    def _start_own(self) -> Receiver:
        report = self._folder / "receiver.json"
        argv = [sys.executable, "-I", str(_HERE / "receiver.py"), str(report), str(ENDPOINTS), str(DELAY_S)]
        log_path = self._folder / "receiver.log"
        self._supervisor.start(
            Program("receiver", argv, _environment(), ready=report.exists, log_path=log_path, restart=False)
        )
        told = json.loads(report.read_text())
        return Receiver("own", tuple(told["ports"]), told["pid"])

    # ── Webhooks and events ─────────────────────────────────────────────────────────────────────────────────────────
    def add(self, targets: Sequence[Target]) -> None:
        """Add webhooks, signed."""
        with store_errors():
            self._database["webhooks"].insert_many([target.to_bson(self.vault) for target in targets])

    def write_events(self, targets: Sequence[Target], size: int) -> Path:
        """Write events for these webhooks into a file, for producers; return where."""
        path = self._path("events.jsonl")
        with path.open("w") as file:
            file.writelines(to_lines(targets, size))
        return path

    def queue(self, lines: Path, count: int) -> None:
        """Have so many events in the queue; no worker may run.

        Raises:
            RowFailed: they are not there.
        """
        step = 2 if count >= _SHARED_FROM else 1
        handings = [Handing(0, first=first, step=step, is_single=False, bulk=count) for first in range(step)]
        self.produce(lines, handings, 60 + count / 200)
        self._wait_for_rewrite()

    def queue_plain(self, lines: Path, count: int) -> None:
        """Have so many messages in the plain worker's queue. As `queue`."""
        step = 2 if count >= _SHARED_FROM else 1
        self.produce_plain(lines, [Handing(count, first=first, step=step) for first in range(step)], 60 + count / 200)
        self._wait_for_rewrite()

    def produce(self, lines: Path, handings: Sequence[Handing], within_s: float) -> list[Any]:
        """Have producers hand in events, one beside the other; return their reports.

        Raises:
            RowFailed: one failed, or took too long.
        """
        argv = [sys.executable, "-m", "webhooks.bench.producer", str(lines)]
        return self._run([[*argv, handing.to_json()] for handing in handings], self._env, self._folder, within_s)

    def produce_plain(self, lines: Path, handings: Sequence[Handing], within_s: float) -> list[Any]:
        """Have plain producers hand in events. As `produce`."""
        argv = [sys.executable, "yardsticks.py", "produce", str(lines)]
        orders = [[*argv, handing.to_json()] for handing in handings]
        return self._run(orders, self._plain_env, self._plain_folder, within_s)

    def run_bare(self, url: str, lines: Path, seconds: float) -> float:
        """Run the bare loop; return its requests per second.

        Raises:
            RowFailed: it failed.
        """
        argv = [sys.executable, "yardsticks.py", "bare", url, str(lines), str(seconds)]
        [told] = self._run([argv], self._plain_env, self._plain_folder, seconds + _SOON_S)
        return told["count"] / told["seconds"]

    def _run(self, orders: Sequence[Sequence[str]], env: Mapping[str, str], cwd: Path, within_s: float) -> list[Any]:
        """Run programs that write a report, whose path is added to their arguments; return the reports."""
        reports = [self._path("report.json") for _ in orders]
        programs = [
            Program(f"{report.stem}", [*argv, str(report)], env, cwd, log_path=self._path("run.log"), restart=False)
            for argv, report in zip(orders, reports, strict=True)
        ]
        with _Troupe(self._screen) as troupe:
            for program in programs:
                troupe.start(program)
            _wait(
                lambda: not any(troupe.is_running(program.name) for program in programs),
                "a producer or a yardstick to end",
                lambda: None,
                within_s,
            )
        for program, report in zip(programs, reports, strict=True):
            if not report.exists():
                raise RowFailed(f"a producer or a yardstick failed: {_told(program)}")
        return [json.loads(report.read_text()) for report in reports]

    # ── Workers ─────────────────────────────────────────────────────────────────────────────────────────────────────
    @contextmanager
    def workers(self) -> Iterator[Crew]:
        """Run workers of the product while the context lasts; they may not take messages yet."""
        bases = [
            replace(worker_program(self._env, self._folder, grace_s=_GRACE_S), name=f"worker{number}")
            for number in range(self._plan.workers)
        ]
        with self._crew(bases) as crew:
            yield crew

    @contextmanager
    def plain_worker(self) -> Iterator[Crew]:
        """Run the plain worker, with as many processes as the product has workers. As `workers`."""
        argv = [sys.executable, "-m", "celery", "-A", "yardsticks", "worker", "--loglevel=INFO", "--pool=prefork"]
        argv += [f"--concurrency={self._plan.workers}"]
        program = Program("plain", argv, self._plain_env, self._plain_folder, grace_s=_GRACE_S)
        with self._crew([program]) as crew:
            yield crew

    @contextmanager
    def _crew(self, bases: Sequence[Program]) -> Iterator[Crew]:
        folder = self._path("crew")
        folder.mkdir()
        programs = [
            replace(
                base,
                argv=[*base.argv, f"--hostname={base.name}@%h", f"--pidfile={_pid_path(folder, base.name)}"],
                log_path=folder / f"{base.name}.log",
                restart=False,
            )
            for base in bases
        ]
        with _Troupe(self._screen) as troupe:
            for program in programs:
                troupe.start(program)
            yield Crew(troupe, programs, folder)
        shutil.rmtree(folder)  # a log can be large

    def watch(
        self,
        crew: Crew,
        logged: Callable[[], int],
        enough: int,
        *,
        receiver: Receiver,
        tell: Callable[[str], None],
        patience_s: float = 40,
    ) -> list[Sample]:
        """Look on until there are so many logs.

        Args:
            crew: who works.
            logged: counts logs.
            enough: how many are waited for.
            receiver: who takes them.
            tell: is told how it goes.
            patience_s: seconds without a new log that end it.

        Raises:
            RowFailed: there are no more new ones, or a worker has ended.
        """
        samples: list[Sample] = []
        grown_at = time.monotonic()
        while True:
            sample = Sample(time.monotonic(), logged(), self._cpu_s(crew, [receiver.pid]))
            if not samples or sample.logged > samples[-1].logged:
                grown_at = sample.at
            samples.append(sample)
            if sample.logged >= enough:
                return samples
            crew.check()
            if sample.at - grown_at > patience_s:
                raise RowFailed(f"no new log for {patience_s:g} s: {sample.logged} of {enough}")
            tell(f"{sample.logged:,} of {enough:,}")
            time.sleep(_LOOK_EVERY_S)

    def _cpu_s(self, crew: Crew, receivers: Collection[int]) -> dict[str, float]:
        used = {"workers": crew.cpu_s(), "receiver": self._cpu.used_s(receivers), "bench": processes.own_cpu_s()}
        used |= {name: self._cpu.used_s([pid]) for name, pid in self._server_pids.items()}
        machine = processes.machine_cpu_s()
        # What a server of somebody else uses cannot be told from what is no part of this.
        return used if machine is None or len(self._server_pids) < 2 else used | {"machine": machine}

    # ── Room ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def require_room(self, events: int, bytes_each: int) -> None:
        """Make sure that so many queued events have room in memory and on the disk, where the servers are our own.

        Raises:
            RowFailed: they have not.
        """
        if self._plan.broker_url is not None:
            return
        needed = events * bytes_each
        for what, free in (
            ("memory", processes.available_bytes()),
            ("space on the disk", shutil.disk_usage(self._folder).free),
        ):
            if free < needed:
                raise RowFailed(f"{events:,} queued events need {needed >> 20:,} MB of {what}; {free >> 20:,} are free")

    def _path(self, name: str) -> Path:
        self._count += 1
        return self._folder / f"{self._count:03}-{name}"


@contextmanager
def open_stage(plan: Plan) -> Iterator[Stage]:
    """Start servers for a run, and end all when the context ends, however it does.

    Raises:
        CannotStart: a server does not come up, or one that is given is not empty.
        ServerMissing: a server is not installed.
    """
    if sys.platform != "linux":
        raise CannotStart("the benchmark reads /proc, and so runs on Linux alone")
    if plan.broker_url is not None and urlsplit(plan.broker_url).scheme not in ("redis", "rediss"):
        raise CannotStart("the benchmark measures a Redis broker: give redis://…")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="webhooks-bench-")))
        screen = stack.enter_context((folder / "programs.log").open("w"))
        supervisor = stack.enter_context(Supervisor(screen))
        yield Stage(plan, folder, supervisor, screen, stack)


def _open_redis(url: str) -> redis.Redis:
    try:
        return redis.Redis.from_url(url, socket_timeout=_ANSWER_S, socket_connect_timeout=5)
    except ValueError:
        raise CannotStart("the broker's URL is no redis://… that can be read") from None


@contextmanager
def _broker_errors() -> Iterator[None]:
    """Turn what the broker does not do into an error of one line."""
    try:
        yield
    except RedisError as error:
        raise CannotStart(f"the broker cannot be used: {error}") from None


def _environment() -> dict[str, str]:
    """Return the environment without what would set the product, so that its defaults hold."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("WEBHOOKS_", "CELERY_"))}


def _free_ports(count: int) -> tuple[int, ...]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((embedded.LOOPBACK, 0))
        return tuple(probe.getsockname()[1] for probe in probes)


def _pid_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.pid"


def _told(program: Program) -> str:
    """Say what a program wrote last."""
    return " / ".join(last_lines(cast("Path", program.log_path))) or "it wrote nothing"


def _wait(is_done: Callable[[], bool], what: str, check: Callable[[], None], within_s: float = _SOON_S) -> None:
    deadline = time.monotonic() + within_s
    while not is_done():
        check()
        if time.monotonic() > deadline:
            raise RowFailed(f"waited {within_s:g} s for {what}")
        time.sleep(_LOOK_EVERY_S)
