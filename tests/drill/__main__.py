"""Run one drill: real servers, two workers, a steady load, and a Prometheus with the alert rules of the docs.

python -m tests.drill redis --folder /tmp/drill

Needs Debian's package ``prometheus``. What was seen is written to the folder, with what each panel of the dashboard
shows; ``python -m tests.drill.render`` draws that.
"""

import argparse
import json
import os
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymongo
from bson import ObjectId
from celery import Celery

from tests.lab.receiver import Receiver, hang, reply
from tests.lab.samples_data import read_sample
from tests.lab.servers import Servers
from tests.lab.worker import Worker, wait_until
from webhooks.local.processes import kill_group, spawn
from webhooks.local.servers import LOOPBACK, free_port
from webhooks.models import COTWebhook

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
#: Prometheus's own defaults are a minute.
EVERY_S = 15
#: Seconds before the fault; after it, at most; and for the alerts to end, at most.
BEFORE_S, FAULT_S, AFTER_S = 120.0, 420.0, 600.0
#: A webhook is paused after ten minutes.
HANGING_S = 840.0
EVENTS_PER_S = 6
COMPANIES = 3


@dataclass
class Drill:
    """A running system under load."""

    folder: Path
    servers: Servers = field(init=False)
    workers: list[Worker] = field(default_factory=list)
    receiver: Receiver = field(default_factory=Receiver)
    companies: list[str] = field(default_factory=list)
    prometheus_url: str = ""
    _stopping: threading.Event = field(default_factory=threading.Event)

    def start(self) -> Any:
        """Start everything; return Prometheus's process."""
        self.servers = Servers(self.folder)
        self.servers.start()
        ports = [free_port(), free_port()]
        settings = {
            "WEBHOOKS_BROKER_URL": self.servers.valkey.url,
            "WEBHOOKS_MONGODB_URL": f"{self.servers.mongod.url.rpartition('/')[0]}/drill",
            "WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8",
            "WEBHOOKS_CONCURRENCY": "64",
        }
        with pymongo.MongoClient[dict[str, Any]](self.servers.mongod.url) as client:
            for number in range(COMPANIES):
                self.companies.append(str(ObjectId()))
                value = {**read_sample("webhook-task"), "_id": str(ObjectId()), "company": self.companies[-1]}
                value |= {"url": f"{self.receiver.url}/{number}", "code": f"company_{number}"}
                client["drill"]["webhooks"].insert_one(COTWebhook.model_validate(value).to_bson())
        for number, port in enumerate(ports):
            worker = Worker(self.folder, {**settings, "WEBHOOKS_METRICS_PORT": str(port)}, f"worker{number}")
            self.workers.append(worker)
            worker.start()
        threading.Thread(target=self._send, daemon=True).start()
        return self._start_prometheus(ports)

    def _start_prometheus(self, ports: list[int]) -> Any:
        targets = [f"{LOOPBACK}:{port}" for port in ports]
        every = f"{EVERY_S}s"
        config = {
            "global": {"scrape_interval": every, "evaluation_interval": every},
            "rule_files": [str(MONITORING / "alerts.yml")],
            "scrape_configs": [{"job_name": "webhooks", "static_configs": [{"targets": targets}]}],
        }
        path, address = self.folder / "prometheus.yml", f"{LOOPBACK}:{free_port()}"
        path.write_text(json.dumps(config))  # JSON is YAML
        argv = ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={self.folder / 'tsdb'}"]
        with (self.folder / "prometheus.log").open("wb") as log:
            process = spawn([*argv, f"--web.listen-address={address}"], env=os.environ, stdout=log)
        self.prometheus_url = f"http://{address}/api/v1"
        wait_until(self._has_samples, "Prometheus has scraped")
        return process

    def _has_samples(self) -> bool:
        try:
            return bool(self.ask("query", query="webhooks_up")["result"])
        except OSError:
            return False

    def ask(self, what: str, **query: object) -> Any:
        """Ask Prometheus."""
        url = f"{self.prometheus_url}/{what}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def send(self, company: str, count: int = 1) -> None:
        """Send events of a company; those that Redis does not take are lost."""
        app = Celery("drill", broker=self.servers.valkey.url, set_as_current=False)
        event = {**read_sample("event-task-create"), "company": company}
        with app.connection_for_write(transport_options={"socket_timeout": 1}) as connection:
            for _ in range(count):
                app.send_task("webhooks.deliver", [event], connection=connection, retry=False)

    def _send(self) -> None:
        number = 0
        while not self._stopping.wait(1 / EVENTS_PER_S):
            number += 1
            try:
                self.send(self.companies[number % COMPANIES])
            except Exception:
                time.sleep(1)

    def find_firing(self) -> set[str]:
        """Return the alerts that fire."""
        alerts = self.ask("alerts")["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    def watch(self, seconds: float, is_over: Callable[[set[str]], bool] = lambda _: False) -> dict[str, float]:
        """Return when each alert began to fire, in seconds from now."""
        begun, seen = time.monotonic(), dict[str, float]()
        while (passed := time.monotonic() - begun) < seconds:
            firing = self.find_firing()
            for name in firing - seen.keys():
                seen[name] = round(passed)
                print(f"{passed:5.0f} s  {name}", flush=True)
            if is_over(firing):
                break
            time.sleep(1)
        return seen

    def save_panels(self, since: float) -> None:
        """Write what each panel of the dashboard shows."""
        dashboard = json.loads((MONITORING / "dashboard.json").read_text())
        shown = []
        for panel in dashboard["panels"]:
            lines = []
            for target in panel["targets"]:
                found = self.ask("query_range", query=target["expr"], start=since, end=time.time(), step=5)["result"]
                lines += [{"legend": target.get("legendFormat", ""), **one} for one in found]
            unit = panel["fieldConfig"]["defaults"]["unit"]
            shown.append({"title": panel["title"], "type": panel["type"], "unit": unit, "lines": lines})
        (self.folder / "panels.json").write_text(json.dumps(shown))

    def close(self) -> None:
        """End everything."""
        self._stopping.set()
        for worker in self.workers:
            worker.kill()
        self.servers.discard()


def _make_loud(drill: Drill) -> None:
    """Have one company hand in many events at once, for an endpoint that takes its time."""
    drill.receiver.on("/0", reply(200, delay_s=5))
    threading.Thread(target=drill.send, args=(drill.companies[0], 4_000), daemon=True).start()


#: Name → what is broken, and how it is repaired.
DRILLS: dict[str, tuple[Callable[[Drill], object], Callable[[Drill], object]]] = {
    "redis": (lambda drill: drill.servers.valkey.stop(), lambda drill: drill.servers.valkey.start()),
    "mongodb": (lambda drill: drill.servers.mongod.stop(), lambda drill: drill.servers.mongod.start()),
    "hanging": (
        lambda drill: drill.receiver.on("/0", hang()),
        lambda drill: drill.receiver.on("/0", reply(200)),
    ),
    "loud": (_make_loud, lambda drill: drill.receiver.on("/0", reply(200))),
    "worker": (lambda drill: drill.workers[0].kill(), lambda drill: drill.workers[0].start()),
}


def main() -> None:
    """Run the drill that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.drill")
    parser.add_argument("name", choices=DRILLS)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    break_it, repair = DRILLS[given.name]
    folder = given.folder / given.name
    folder.mkdir(parents=True)
    with Receiver() as receiver:
        drill = Drill(folder, receiver=receiver)
        prometheus = None
        try:
            prometheus = drill.start()
            since = time.time()
            drill.watch(BEFORE_S)
            broken_at = time.time()
            break_it(drill)
            print("broken", flush=True)
            fired = drill.watch(HANGING_S if given.name == "hanging" else FAULT_S)
            repaired_at = time.time()
            repair(drill)
            print("repaired", flush=True)
            drill.watch(AFTER_S, lambda firing: not firing)
            quiet_s = round(time.time() - repaired_at)
            marks = {"broken_at": broken_at, "repaired_at": repaired_at, "fired": fired, "quiet_s": quiet_s}
            (folder / "marks.json").write_text(json.dumps(marks))
            drill.save_panels(since)
            print(json.dumps(marks))
        finally:
            drill.close()
            if prometheus is not None:
                kill_group(prometheus)
                prometheus.wait()


if __name__ == "__main__":
    main()
