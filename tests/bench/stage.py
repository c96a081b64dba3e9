"""What a run of the benchmark stands on: servers, receivers, workers and producers, and what is read from them.

Owns every process and file of a run: leaving the stage leaves none behind. Knows nothing of what is measured (`rows`).
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from tests.bench import processes
from tests.bench.crew import LOOK_EVERY_S, SOON_S, Crew, Troupe, environment, run_crew, run_to_end, wait
from tests.bench.events import Target, to_lines
from tests.bench.flower import FlowerReader
from tests.bench.measures import RowFailed, Sample
from tests.bench.network import LOCAL, Network, Place, open_network
from tests.bench.plan import Plan
from tests.bench.producer import Handing
from tests.bench.receivers import Receiver, Receivers
from tests.bench.servers import Servers
from tests.lab.rabbitmq import find_rabbitmq, run_rabbitmq
from webhooks.errors import CannotStart
from webhooks.local.processes import Program, Supervisor
from webhooks.local.servers import LOOPBACK, free_port
from webhooks.local.up import worker_program
from webhooks.rules.encryption import Vault, new_key

#: Seconds that a worker gets to end; hanging receivers are not waited for.
_ROOT = Path(__file__).parents[2]
_GRACE_S = 3.0
#: From so many events on, two producers share them.
_SHARED_FROM = 2_000


@dataclass(frozen=True, slots=True)
class Workers:
    """Workers of the product, alike."""

    processes: int
    #: Attempts of each at one time; None: the product's default.
    concurrency: int | None = None


class Stage:
    """Everything that a run stands on; made by `open_stage`."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        supervisor: Supervisor,
        screen: TextIO,
        on_close: ExitStack,
        network: Network | None,
    ) -> None:
        self._folder = folder
        self._screen = screen
        self._network = network
        self._count = 0
        place = LOCAL if network is None else network.hub
        key = new_key()
        self._vault = Vault([key])
        self._usual = Workers(plan.workers, plan.concurrency)
        self.servers = Servers(plan, place, folder, supervisor, on_close)
        self.receivers = Receivers(place, folder, supervisor)
        self._cpu = processes.Cpu()
        #: The settings that are not the product's defaults, without the key of secrets and the servers.
        self.settings = {"WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8" if network is None else f"{place.address}/32"}
        if plan.concurrency is not None:
            self.settings["WEBHOOKS_CONCURRENCY"] = str(plan.concurrency)
        self._env = {
            **environment(),
            **self.settings,
            "WEBHOOKS_BROKER_URL": self.servers.broker_url,
            "WEBHOOKS_MONGODB_URL": self.servers.mongodb_url,
            "WEBHOOKS_ENCRYPTION_KEY": key,
        }
        self._plain_folder = folder / "plain"
        self._plain_folder.mkdir()
        shutil.copy(Path(__file__).parent / "yardsticks.py", self._plain_folder)
        self._plain_env = {
            **environment(),
            "BENCH_BROKER_URL": self.servers.broker_url,
            "BENCH_MONGODB_URL": self.servers.mongodb_url,
        }

    def versions(self) -> dict[str, str]:
        """Return what servers and receivers are."""
        return {**self.servers.versions(), "nginx": self.receivers.version()}

    # ── Webhooks and events ─────────────────────────────────────────────────────────────────────────────────────────
    def prepare(self, targets: Sequence[Target], size: int) -> Path:
        """Add webhooks, and write events for them into a file; return where."""
        self.servers.add(targets, self._vault)
        return self.write_events(targets, size)

    def write_events(self, targets: Sequence[Target], size: int) -> Path:
        """Write events for these webhooks into a file, for producers; return where."""
        path = self._path("events.jsonl")
        with path.open("w") as file:
            file.writelines(to_lines(targets, size))
        return path

    def queue(self, lines: Path, count: int, settings: Mapping[str, str] | None = None) -> None:
        """Have so many events in the queue.

        Args:
            lines: of `prepare`.
            count: how many.
            settings: of the producers, as for `workers`.

        Raises:
            RowFailed: they are not there.
        """
        step = 2 if count >= _SHARED_FROM else 1
        handings = [Handing(0, first=first, step=step, is_single=False, bulk=count) for first in range(step)]
        self.produce(lines, handings, 60 + count / 200, settings)
        self.servers.wait_for_rewrite()

    def queue_plain(self, lines: Path, count: int) -> None:
        """Have so many messages in the plain worker's queue. As `queue`."""
        step = 2 if count >= _SHARED_FROM else 1
        self.produce_plain(lines, [Handing(count, first=first, step=step) for first in range(step)], 60 + count / 200)
        self.servers.wait_for_rewrite()

    def produce(
        self, lines: Path, handings: Sequence[Handing], within_s: float, settings: Mapping[str, str] | None = None
    ) -> list[Any]:
        """Have producers hand in events, one beside the other; return their reports.

        Raises:
            RowFailed: one failed, or took too long.
        """
        argv = [sys.executable, "-m", "tests.bench.producer", str(lines)]
        orders = [[*argv, handing.to_json()] for handing in handings]
        env = {**self._env, **(settings or {})}
        return run_to_end(orders, env, _ROOT, new_path=self._path, screen=self._screen, within_s=within_s)

    def produce_plain(self, lines: Path, handings: Sequence[Handing], within_s: float) -> list[Any]:
        """Have plain producers hand in events. As `produce`."""
        argv = [sys.executable, "yardsticks.py", "produce", str(lines)]
        return self._run_plain([[*argv, handing.to_json()] for handing in handings], within_s)

    def run_bare(self, url: str, lines: Path, seconds: float) -> float:
        """Run the bare loop; return its requests per second.

        Raises:
            RowFailed: it failed.
        """
        argv = [sys.executable, "yardsticks.py", "bare", url, str(lines), str(seconds)]
        [told] = self._run_plain([argv], seconds + SOON_S)
        return told["count"] / told["seconds"]

    def _run_plain(self, orders: Sequence[Sequence[str]], within_s: float) -> list[Any]:
        return run_to_end(
            orders, self._plain_env, self._plain_folder, new_path=self._path, screen=self._screen, within_s=within_s
        )

    # ── Workers ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def workers(
        self,
        wanted: Workers | None = None,
        settings: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> AbstractContextManager[Crew]:
        """Run workers of the product while the context lasts; they may not take messages yet.

        Args:
            wanted: which; None: those of the plan. On a network of the benchmark's own each gets a namespace.
            settings: ``WEBHOOKS_…`` that are not as in the rest of the run; None: there are none.
            options: of Celery's worker.
        """
        wanted = wanted or self._usual
        env = {**self._env, **(settings or {})}
        if wanted.concurrency is not None:
            env = {**env, "WEBHOOKS_CONCURRENCY": str(wanted.concurrency)}
        base = worker_program(env, self._folder, grace_s=_GRACE_S)
        bases = [
            replace(base, argv=[*self._new_place().prefix, *base.argv, *options], name=f"worker{number}")
            for number in range(wanted.processes)
        ]
        return run_crew(bases, self._path("crew"), self._screen)

    def plain_worker(self) -> AbstractContextManager[Crew]:
        """Run the plain worker, with as many processes as the product has workers. As `workers`."""
        argv = [sys.executable, "-m", "celery", "-A", "yardsticks", "worker", "--loglevel=INFO", "--pool=prefork"]
        argv += [f"--concurrency={self._usual.processes}"]
        program = Program("plain", argv, self._plain_env, self._plain_folder, grace_s=_GRACE_S)
        return run_crew([program], self._path("crew"), self._screen)

    @contextmanager
    def rabbitmq(self) -> Iterator[Mapping[str, str]]:
        """Run a RabbitMQ while the context lasts; yields the settings of workers and producers that use it.

        Raises:
            RowFailed: it is not installed.
        """
        server = find_rabbitmq()
        if server is None:
            raise RowFailed("rabbitmq-server is not installed")
        folder = self._path("rabbitmq")
        folder.mkdir()
        with run_rabbitmq(server, folder) as url:
            yield {"WEBHOOKS_BROKER_URL": url, "WEBHOOKS_PUBLISH_TIMEOUT_S": "60"}

    def flower(self) -> AbstractContextManager[Crew]:
        """Run Flower beside the product's workers while the context lasts, and read its task page now and then."""
        return self._run_flower("webhooks", self._env, self._folder)

    def plain_flower(self) -> AbstractContextManager[Crew]:
        """Run Flower beside the plain worker. As `flower`."""
        return self._run_flower("yardsticks", self._plain_env, self._plain_folder)

    @contextmanager
    def _run_flower(self, app: str, env: Mapping[str, str], folder: Path) -> Iterator[Crew]:
        port = free_port()
        argv = [sys.executable, "-m", "celery", "-A", app, "flower", f"--address={LOOPBACK}", f"--port={port}"]
        program = Program("flower", argv, env, folder, grace_s=_GRACE_S)
        with (
            run_crew([program], self._path("crew"), self._screen, is_worker=False) as crew,
            FlowerReader(f"http://{LOOPBACK}:{port}") as reader,
        ):
            wait(reader.has_read, "Flower's task page", crew.check)
            yield crew

    def _new_place(self) -> Place:
        return LOCAL if self._network is None else self._network.add_worker()

    # ── What is seen ────────────────────────────────────────────────────────────────────────────────────────────────
    def watch(
        self,
        crew: Crew,
        logged: Callable[[], int],
        enough: int,
        *,
        receiver: Receiver,
        tell: Callable[[str], None],
        also: Mapping[str, Crew] = {},
        patience_s: float = 40,
    ) -> list[Sample]:
        """Look on until there are so many logs.

        Args:
            crew: who works.
            logged: counts logs.
            enough: how many are waited for.
            receiver: who takes them.
            tell: is told how it goes.
            also: who works beside, by what its part of the CPU time is called.
            patience_s: seconds without a new log that end it.

        Raises:
            RowFailed: there are no more new ones, or a worker has ended.
        """
        samples: list[Sample] = []
        grown_at = time.monotonic()
        while True:
            used = self._cpu_s(crew, [receiver.pid]) | {name: other.cpu_s() for name, other in also.items()}
            sample = Sample(time.monotonic(), logged(), used)
            if not samples or sample.logged > samples[-1].logged:
                grown_at = sample.at
            samples.append(sample)
            if sample.logged >= enough:
                return samples
            crew.check()
            if sample.at - grown_at > patience_s:
                raise RowFailed(f"no new log for {patience_s:g} s: {sample.logged} of {enough}")
            tell(f"{sample.logged:,} of {enough:,}")
            time.sleep(LOOK_EVERY_S)

    def server_cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds that the servers of our own have used until now: ``valkey``, ``mongod``."""
        return {name: self._cpu.used_s([pid]) for name, pid in self.servers.pids.items()}

    def _cpu_s(self, crew: Crew, receivers: Collection[int]) -> dict[str, float]:
        used = {"workers": crew.cpu_s(), "receiver": self._cpu.used_s(receivers), "bench": processes.own_cpu_s()}
        used |= self.server_cpu_s()
        machine = processes.machine_cpu_s()
        # What a server of somebody else uses cannot be told from what is no part of this.
        return used if machine is None or len(self.servers.pids) < 2 else used | {"machine": machine}

    def require_room(self, events: int, bytes_each: int) -> None:
        """Make sure that so many queued events have room in memory and on the disk, where the broker is our own.

        Raises:
            RowFailed: they have not.
        """
        if "valkey" not in self.servers.pids:
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
def open_stage(plan: Plan, *, is_networked: bool = False) -> Iterator[Stage]:
    """Start servers for a run, and end all when the context ends, however it does.

    Args:
        plan: what is to run.
        is_networked: servers and receivers stand at a bridge, and each worker in a network namespace of its own.

    Raises:
        CannotStart: a server does not come up, or one that is given is not empty.
        NoNetwork: no namespaces can be made here.
        ServerMissing: a server is not installed.
    """
    if sys.platform != "linux":
        raise CannotStart("the benchmark reads /proc, and so runs on Linux alone")
    if plan.broker_url is not None and urlsplit(plan.broker_url).scheme not in ("redis", "rediss"):
        raise CannotStart("the benchmark measures a Redis broker: give redis://…")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="webhooks-bench-")))
        screen = stack.enter_context((folder / "programs.log").open("w"))
        network = stack.enter_context(open_network(folder, screen)) if is_networked else None
        supervisor = stack.enter_context(Troupe(screen))
        yield Stage(plan, folder, supervisor, screen, stack, network)
