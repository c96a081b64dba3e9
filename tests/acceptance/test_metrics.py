"""A worker's port for metrics and probes, from outside."""

import urllib.request

from tests.acceptance.conftest import Stack
from tests.lab.receiver import Receiver, reply
from tests.lab.samples_data import read_sample
from tests.lab.worker import wait_until
from tests.unit.test_metrics import samples
from webhooks.local.servers import free_port


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return answer.read().decode()


def read_after(port: int, attempts: int) -> dict[tuple[str, str], float]:
    """Read the metrics, once so many attempts are counted: that happens after the log."""
    found = samples(get(port, "/metrics"))
    count = sum(value for (name, _), value in found.items() if name == "webhooks_attempts_total")
    return found if count == attempts else {}


def test_worker_tells_what_it_delivered(stack: Stack):
    port = free_port()
    with Receiver().then(reply(200), reply(503), reply(200)) as receiver:
        webhook_id = stack.add_webhook(receiver.url)
        worker = stack.start_worker(WEBHOOKS_METRICS_PORT=str(port))
        for count in (1, 3):  # one attempt, then one that fails and its retry
            stack.send_task(read_sample("event-task-create"))
            stack.logs(count)
        assert f"metrics and probes are served at 127.0.0.1 port {port}" in worker.log()
        assert get(port, "/live") == "ok\n"
        wait_until(lambda: get(port, "/ready") == "ok\n", "ready")
        found = wait_until(lambda: read_after(port, attempts=3), "counted")
    assert found["webhooks_attempts_total", "error_kind=none,outcome=success,status_class=2xx"] == 2
    assert found["webhooks_attempts_total", "error_kind=none,outcome=failed,status_class=5xx"] == 1
    assert found["webhooks_events_total", "result=matched"] == 2
    assert found["webhooks_webhook_attempts_total", f"outcome=success,webhook={webhook_id}"] == 2
    assert found["webhooks_first_attempt_delay_seconds_count", ""] == 2
    assert found["webhooks_delivery_duration_seconds_count", "outcome=success"] == 2
    assert found["webhooks_delivery_duration_seconds_sum", "outcome=success"] >= 1, "it waited for its retry"
    assert found["webhooks_attempt_phase_duration_seconds_count", "phase=wait"] == 3
    assert found["webhooks_attempts_in_flight_limit", ""] == 8
