"""What a run stands on: servers, receivers, workers, producers; and samples of what they do.

Leaving an environment ends every process and removes every file of it. Everything here raises `RowFailed` if a program
fails or takes too long, with what it wrote last.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from urllib.parse import urlsplit

import trustme

from tests.bench import processes
from tests.bench.events import Target, to_lines
from tests.bench.flower import FlowerReader
from tests.bench.measures import RowFailed, Sample
from tests.bench.network import LOCAL, Network, NoNetwork, find_tools, open_network
from tests.bench.plan import ENDPOINTS, Plan
from tests.bench.producer import Handing
from tests.bench.receivers import INSTANT, NEAR, Receivers
from tests.bench.servers import Servers
from tests.bench.workers import LOOK_EVERY_S, SOON_S, Crew, Troupe, run_crew, run_to_end, wait
from tests.lab.rabbitmq import find_rabbitmq, run_rabbitmq
from tests.lab.worker import environment
from webhooks.errors import CannotStart
from webhooks.local.processes import Program
from webhooks.local.servers import LOOPBACK, free_port
from webhooks.local.up import worker_program
from webhooks.rules.encryption import Vault, new_key

_ROOT = Path(__file__).parents[2]
#: Seconds that a worker gets to end; it does not wait for receivers that hang.
_GRACE_S = 3.0
#: Above this many events two producers share them.
_SHARED_FROM = 2_000
#: Seconds without a new log after which a run has failed.
_PATIENCE_S = 40.0
#: A name that exists nowhere else (RFC 6761).
_DOMAIN = "bench.test"


@dataclass(frozen=True, slots=True)
class System:
    """The product, or the plain worker that it is compared with."""

    #: Of Celery.
    app: str
    env: Mapping[str, str] = field(repr=False)
    #: The working directory of its programs.
    folder: Path
    #: Command line of its producer.
    producer: Sequence[str]


@dataclass(frozen=True, slots=True)
class Workers:
    """Workers of the product, all alike."""

    #: None: as many as the plan has.
    processes: int | None = None
    #: Attempts of each at a time; None: as the plan has.
    concurrency: int | None = None
    #: ``WEBHOOKS_…`` that differ from the rest of the run.
    settings: Mapping[str, str] = field(default_factory=dict)
    #: Of Celery's worker.
    options: Sequence[str] = ()
    #: Before their command line.
    prefix: Sequence[str] = ()


class TlsHosts(NamedTuple):
    """Receivers at TLS hosts, and workers that know their names and trust their certificate."""

    urls: list[str]
    workers: Workers


class Environment:
    def __init__(self, plan: Plan, folder: Path, screen: TextIO, on_close: ExitStack, network: Network | None) -> None:
        self._plan = plan
        self._folder = folder
        self._screen = screen
        self._network = network
        self._count = 0
        self._cpu = processes.Cpu()
        self._tls: TlsHosts | None = None
        place, key = LOCAL if network is None else network.hub, new_key()
        self._vault = Vault([key])
        self.receivers = Receivers(place, folder, on_close.enter_context(Troupe(screen)))
        self.servers = Servers(plan, place, folder, on_close)
        #: The settings that differ from the product's defaults, except for servers and the key of secrets.
        self.settings = {"WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8" if network is None else f"{place.address}/32"}
        if plan.concurrency is not None:
            self.settings["WEBHOOKS_CONCURRENCY"] = str(plan.concurrency)
        urls = {"BROKER_URL": self.servers.broker_url, "MONGODB_URL": self.servers.mongodb_url}
        env = {**environment(), **self.settings, **{f"WEBHOOKS_{name}": url for name, url in urls.items()}}
        producer = [sys.executable, "-m", "tests.bench.producer"]
        self.product = System("webhooks", {**env, "WEBHOOKS_ENCRYPTION_KEY": key}, _ROOT, producer)
        # A folder with this file alone, so that nothing of the product is imported.
        plain_folder = folder / "plain"
        plain_folder.mkdir()
        shutil.copy(Path(__file__).parent / "baselines.py", plain_folder)
        env = {**environment(), **{f"BENCH_{name}": url for name, url in urls.items()}}
        self.plain = System("baselines", env, plain_folder, [sys.executable, "baselines.py", "produce"])

    def versions(self) -> dict[str, str]:
        return {**self.servers.versions(), "nginx": self.receivers.version()}

    # ── Webhooks and events ─────────────────────────────────────────────────────────────────────────────────────────
    def targets(self, path: str = INSTANT, *, beside: str = INSTANT) -> list[Target]:
        """Return new webhooks, one per endpoint, at a receiver that has both paths."""
        receiver = self.receivers.find(path, beside)
        return [Target(receiver.url(index, path)) for index in range(ENDPOINTS)]

    def timed_targets(self) -> list[Target]:
        """Return new webhooks at the receiver that notes when requests arrive."""
        return [Target(self.receivers.own().url(index, INSTANT)) for index in range(ENDPOINTS)]

    def tls_hosts(self, count: int) -> TlsHosts:
        """Give a receiver TLS host names; the first call sets how many."""
        if self._tls is not None:
            return self._tls
        tools = find_tools("unshare", "mount", "sh")
        authority, folder = trustme.CA(), self._path("tls")
        folder.mkdir()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        port = self.receivers.open_tls(authority.issue_cert(f"*.{_DOMAIN}"))
        names = [f"host{number}.{_DOMAIN}" for number in range(count)]
        (folder / "hosts").write_text("".join(f"{LOOPBACK} {name}\n" for name in ("localhost", *names)))
        # In a mount namespace of its own a worker has these names in /etc/hosts, for the system's resolver to read.
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        prefix = [tools["unshare"], "--mount", tools["sh"], "-c", script, str(folder / "hosts")]
        probe = subprocess.run([*prefix, "true"], capture_output=True, text=True, timeout=SOON_S, check=False)
        if probe.returncode:
            raise NoNetwork(f"no mount namespace can be made here: {probe.stderr.strip()}")
        workers = Workers(settings={"WEBHOOKS_CA_BUNDLE": str(folder / "ca.pem")}, prefix=prefix)
        self._tls = TlsHosts([f"https://{name}:{port}{NEAR}" for name in names], workers)
        return self._tls

    def prepare(self, targets: Sequence[Target], size: int) -> Path:
        """Store webhooks, and write events for them into a file for producers; return the file."""
        self.servers.add(targets, self._vault)
        return self.write_events(targets, size)

    def write_events(self, targets: Sequence[Target], size: int) -> Path:
        """Write events for webhooks into a file for producers; return the file."""
        path = self._path("events.jsonl")
        with path.open("w") as file:
            file.writelines(to_lines(targets, size))
        return path

    # ── Producers ───────────────────────────────────────────────────────────────────────────────────────────────────
    def queue(self, system: System, lines: Path, count: int, settings: Mapping[str, str] | None = None) -> None:
        """Queue events."""
        step = 2 if count >= _SHARED_FROM else 1
        single, bulk = (0, count) if system is self.product else (count, 0)
        handings = [Handing(single, bulk=bulk, first=first, step=step) for first in range(step)]
        self.produce(system, lines, handings, 60 + count / 200, settings)
        self.servers.wait_for_rewrite()

    def produce(
        self,
        system: System,
        lines: Path,
        handings: Sequence[Handing],
        within_s: float,
        settings: Mapping[str, str] | None = None,
    ) -> list[Any]:
        """Have producers hand in events, one producer per handing; return their reports."""
        env = {**system.env, **(settings or {})}
        programs = [
            Program(f"producer{number}", [*system.producer, str(lines), handing.to_json()], env, system.folder)
            for number, handing in enumerate(handings)
        ]
        return run_to_end(programs, self._path("producers"), self._screen, within_s)

    def run_bare(self, url: str, lines: Path, seconds: float) -> float:
        """Run the bare loop; return its requests per second."""
        argv = [sys.executable, "baselines.py", "bare", url, str(lines), str(seconds)]
        program = Program("bare", argv, self.plain.env, self.plain.folder)
        [told] = run_to_end([program], self._path("bare"), self._screen, seconds + SOON_S)
        return told["count"] / told["seconds"]

    # ── Workers ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def workers(self, wanted: Workers) -> AbstractContextManager[Crew]:
        """Run workers of the product while the context lasts; in a network each gets a namespace."""
        env = {**self.product.env, **wanted.settings}
        if wanted.concurrency is not None:
            env["WEBHOOKS_CONCURRENCY"] = str(wanted.concurrency)
        base = worker_program(env, self._folder, grace_s=_GRACE_S)
        programs = []
        for number in range(wanted.processes or self._plan.workers):
            place = LOCAL if self._network is None else self._network.add_worker()
            name = f"worker{number}"
            argv = [*place.prefix, *wanted.prefix, *base.argv, *wanted.options, f"--hostname={name}@%h"]
            programs.append(replace(base, argv=argv, name=name))
        return run_crew(programs, self._path("crew"), self._screen)

    def plain_worker(self) -> AbstractContextManager[Crew]:
        """Run the plain worker while the context lasts, with as many processes as the product has workers."""
        argv = [sys.executable, "-m", "celery", "-A", self.plain.app, "worker", "--loglevel=INFO", "--pool=prefork"]
        argv += [f"--concurrency={self._plan.workers}"]
        program = Program("plain", argv, self.plain.env, self.plain.folder, grace_s=_GRACE_S)
        return run_crew([program], self._path("crew"), self._screen)

    @contextmanager
    def rabbitmq(self) -> Iterator[Mapping[str, str]]:
        """Run a RabbitMQ while the context lasts; yields the settings of workers and producers that use it."""
        server = find_rabbitmq()
        if server is None:
            raise RowFailed("rabbitmq-server is not installed")
        folder = self._path("rabbitmq")
        folder.mkdir()
        with run_rabbitmq(server, folder) as url:
            yield {"WEBHOOKS_BROKER_URL": url, "WEBHOOKS_PUBLISH_TIMEOUT_S": "60"}

    @contextmanager
    def flower(self, system: System) -> Iterator[Crew]:
        """Run Flower while the context lasts, and read its task page every two seconds."""
        port = free_port()
        argv = [sys.executable, "-m", "celery", "-A", system.app, "flower", f"--address={LOOPBACK}", f"--port={port}"]
        folder = self._folder if system is self.product else system.folder
        program = Program("flower", argv, system.env, folder, grace_s=_GRACE_S)
        with (
            run_crew([program], self._path("crew"), self._screen) as crew,
            FlowerReader(f"http://{LOOPBACK}:{port}") as reader,
        ):
            wait(reader.has_read, "Flower's task page", crew.check)
            yield crew

    # ── Samples ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def watch(
        self,
        crew: Crew,
        logged: Callable[[], int],
        enough: int,
        *,
        tell: Callable[[str], None],
        also: Mapping[str, Crew] | None = None,
    ) -> list[Sample]:
        """Take samples until there are enough logs.

        Args:
            crew: the workers.
            logged: counts logs.
            enough: how many to wait for.
            tell: is told how far it is.
            also: what else runs, by the name of its CPU time.
        """
        samples: list[Sample] = []
        grown_at = time.monotonic()
        while True:
            used = self._cpu_s({"workers": crew, **(also or {})})
            sample = Sample(time.monotonic(), logged(), used)
            if not samples or sample.logged > samples[-1].logged:
                grown_at = sample.at
            samples.append(sample)
            if sample.logged >= enough:
                return samples
            crew.check()
            if sample.at - grown_at > _PATIENCE_S:
                raise RowFailed(f"no new log for {_PATIENCE_S:g} s: {sample.logged} of {enough}")
            tell(f"{sample.logged:,} of {enough:,}")
            time.sleep(LOOK_EVERY_S)

    def server_cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds that our own servers have used: ``valkey``, ``mongod``."""
        return {name: self._cpu.used_s([pid]) for name, pid in self.servers.pids.items()}

    def _cpu_s(self, crews: Mapping[str, Crew]) -> dict[str, float]:
        used = {name: crew.cpu_s() for name, crew in crews.items()} | self.server_cpu_s()
        used |= {"receiver": self._cpu.used_s(self.receivers.pids()), "bench": processes.own_cpu_s()}
        machine = processes.machine_cpu_s()
        # The use of a given server cannot be told from that of programs outside the benchmark.
        return used if machine is None or len(self.servers.pids) < 2 else used | {"machine": machine}

    def require_room(self, events: int, bytes_each: int) -> None:
        """Make sure that memory and disk have room for queued events, if the broker is our own."""
        if "valkey" not in self.servers.pids:
            return
        needed = events * bytes_each
        rooms = {"memory": processes.available_bytes(), "space on the disk": shutil.disk_usage(self._folder).free}
        for what, free in rooms.items():
            if free < needed:
                raise RowFailed(f"{events:,} queued events need {needed >> 20:,} MB of {what}; {free >> 20:,} are free")

    def _path(self, name: str) -> Path:
        self._count += 1
        return self._folder / f"{self._count:03}-{name}"


@contextmanager
def open_environment(plan: Plan, *, is_networked: bool = False) -> Iterator[Environment]:
    """Start servers for a run, and end everything when the context ends.

    Args:
        plan: what is to run.
        is_networked: servers and receivers stand at a bridge, and each worker in a network namespace of its own.

    Raises:
        CannotStart: a server does not start, or a given one is not empty.
        NoNetwork: no namespaces can be made here.
        ServerMissing: a server is not installed.
    """
    if sys.platform != "linux":
        raise CannotStart("the benchmark reads /proc, so it runs only on Linux")
    if plan.broker_url is not None and urlsplit(plan.broker_url).scheme not in ("redis", "rediss"):
        raise CannotStart("the benchmark measures a Redis broker: give redis://…")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="webhooks-bench-")))
        screen = stack.enter_context((folder / "programs.log").open("w"))
        network = stack.enter_context(open_network()) if is_networked else None
        yield Environment(plan, folder, screen, stack, network)
