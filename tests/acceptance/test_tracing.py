"""What hangs on Celery's signals and task classes: OpenTelemetry's and Sentry's integrations, links and errbacks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.acceptance.conftest import RETRY_DELAY_S, Stack, body_of
from tests.lab.receiver import Receiver, reply
from tests.lab.samples_data import read_sample
from tests.lab.worker import Worker, wait_until

EVENT = read_sample("event-task-create")

#: Both write one JSON object a line to the file beside them: name, trace, span and parent.
OPENTELEMETRY = """
import json, pathlib
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

path = pathlib.Path(__file__).with_name("spans")

class ToFile(SpanExporter):
    def export(self, spans):
        with path.open("a") as file:
            for span in spans:
                parent = None if span.parent is None else f"{span.parent.span_id:016x}"
                ids = {"trace": f"{span.context.trace_id:032x}", "span": f"{span.context.span_id:016x}"}
                links = [f"{link.context.span_id:016x}" for link in span.links]
                about = {"name": span.name, **ids, "parent": parent, "kind": span.kind.name, "links": links}
                file.write(json.dumps(about | {"attributes": dict(span.attributes)}, default=str) + "\\n")
        return SpanExportResult.SUCCESS

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ToFile()))
trace.set_tracer_provider(provider)
CeleryInstrumentor().instrument()

def request():
    return trace.get_tracer("test").start_as_current_span("request")
"""
SENTRY = """
import json, pathlib
import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport

path = pathlib.Path(__file__).with_name("spans")

class ToFile(Transport):
    def capture_envelope(self, envelope):
        with path.open("a") as file:
            for item in envelope.items:
                if item.type == "transaction":
                    event = item.payload.json
                    found = event["contexts"]["trace"]
                    about = {"name": event["transaction"], "trace": found["trace_id"], "span": found["span_id"]}
                    file.write(json.dumps(about | {"parent": found.get("parent_span_id")}) + "\\n")

sentry_sdk.init(
    dsn="http://key@127.0.0.1:9/1", traces_sample_rate=1.0, integrations=[CeleryIntegration()], transport=ToFile
)

def request():
    return sentry_sdk.start_transaction(name="request")
"""


def produce(stack: Stack, code: str) -> str:
    """Run a service's code, with its tracing if there is one."""
    argv = [
        sys.executable,
        "-c",
        f"import json\nfrom webhooks import deliver\nevent = json.loads({body_of(EVENT)!r})\n{code}",
    ]
    done = subprocess.run(argv, env=environment(stack), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def environment(stack: Stack) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(stack.folder), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **stack.settings, "PYTHONPATH": path}


def spans(folder: Path) -> list[dict[str, Any]]:
    path = folder / "spans"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("call", ["deliver.delay(event)", "deliver.delay_many([event, event])"], ids=["delay", "many"])
@pytest.mark.parametrize(
    ("code", "deliver_name", "send_name"),
    [
        (OPENTELEMETRY, "run/webhooks.deliver", "run/webhooks.send"),
        (SENTRY, "webhooks.deliver", "webhooks.send"),
    ],
    ids=["opentelemetry", "sentry"],
)
def test_producers_trace_goes_on_in_event_attempt_and_retry(
    stack: Stack, code: str, deliver_name: str, send_name: str, call: str
):
    (stack.folder / "traced.py").write_text(code)
    with Receiver() as receiver:
        receiver.then(reply(503))
        stack.add_webhook(receiver.url)
        worker = Worker(stack.folder, environment(stack), "worker", "--include", "traced")
        stack.workers.append(worker)
        worker.start()
        produce(stack, f"import traced\nwith traced.request():\n    {call}")
        events = 2 if "many" in call else 1
        stack.logs(events + 1, RETRY_DELAY_S + 30)

        def names() -> list[str]:
            return [span["name"] for span in spans(stack.folder)]

        wait_until(lambda: names().count(send_name) == events + 1, "a span of each attempt")
    found = spans(stack.folder)
    (root,) = [span for span in found if span["name"] == "request"]
    assert names().count(deliver_name) == events
    of_tasks = [span for span in found if span["name"] in (deliver_name, send_name)]
    assert {span["trace"] for span in of_tasks} == {root["trace"]}
    assert all(span["parent"] for span in of_tasks)


def test_each_attempt_is_a_span_of_the_producers_trace_and_tells_its_receiver(stack: Stack):
    (stack.folder / "traced.py").write_text(OPENTELEMETRY)
    with Receiver() as receiver:
        receiver.then(reply(503))
        stack.add_webhook(receiver.url, traced=True)
        worker = Worker(stack.folder, environment(stack), "worker", "--include", "traced")
        stack.workers.append(worker)
        worker.start()
        event_id = produce(
            stack, "import traced\nwith traced.request():\n    sent = deliver.delay(event)\nprint(sent.id)"
        )
        logs = stack.logs(2, RETRY_DELAY_S + 30)
        got = [request.headers["traceparent"] for request in receiver.wait_for(2)]

        def attempts() -> list[dict[str, Any]]:
            return [span for span in spans(stack.folder) if span["kind"] == "CLIENT"]

        wait_until(lambda: len(attempts()) == 2, "a span of each attempt")
    first, second = attempts()
    found = {span["name"]: span for span in spans(stack.folder)}
    assert first["parent"] == second["parent"] == found["apply_async/webhooks.deliver"]["span"]
    assert (first["links"], second["links"]) == ([], [first["span"]])
    assert [span["attributes"]["http.response.status_code"] for span in (first, second)] == [503, 200]
    assert {span["attributes"]["webhooks.event.id"] for span in (first, second)} == {event_id}
    assert {span["trace"] for span in (first, second)} == {found["request"]["trace"]}
    in_logs = [(log["attempt"]["trace_id"], log["attempt"]["span_id"]) for log in logs]
    assert in_logs == [(span["trace"], span["span"]) for span in (first, second)]
    assert [tuple(text.split("-")[1:3]) for text in got] == in_logs


def test_links_and_errbacks_are_queued(stack: Stack, redis_client: redis.Redis):
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        stack.start_worker()
        produce(
            stack,
            "from webhooks import app\n"
            "after = app.signature('their.after', queue='theirs')\n"
            "failed = app.signature('their.failed', queue='theirs', immutable=True)\n"
            "deliver.apply_async([event], link=after, link_error=failed)\n"
            "app.send_task('webhooks.deliver', [{'company': 'none'}], link=after, link_error=failed)\n",
        )
        receiver.wait_for(1)
        wait_until(lambda: redis_client.llen("theirs") == 2, "both callbacks")
    tasks = sorted(json.loads(text)["headers"]["task"] for text in redis_client.lrange("theirs", 0, -1))  # pyright: ignore[reportGeneralTypeIssues]
    assert tasks == ["their.after", "their.failed"]


def test_chain_goes_on_after_the_event_is_accepted(stack: Stack, redis_client: redis.Redis):
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        stack.start_worker()
        produce(
            stack,
            "from celery import chain\n"
            "from webhooks import app\n"
            "chain(deliver.si(event), app.signature('their.next', queue='theirs')).apply_async()\n",
        )
        receiver.wait_for(1)
        wait_until(lambda: redis_client.llen("theirs") == 1, "the next of the chain")
