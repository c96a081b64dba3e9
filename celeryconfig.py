"""Celery's options, each with its reason: for `celery -A webhooks …` and for producers that import `webhooks`.

Only options. What users tune are the `WEBHOOKS_…` settings of docs/settings.md; this file follows from them.
"""

from kombu.entity import Exchange, Queue

from webhooks.config import get_settings
from webhooks.rules import lanes
from webhooks.rules.broker_url import tls_options
from webhooks.transport.connection import OPTION
from webhooks.transport.lanes import LANES_OPTION, Lanes

_settings = get_settings()
_on_redis = _settings.broker_url.startswith("redis")

# ── Broker ──────────────────────────────────────────────────────────────────────────────────────────────────────────
broker_url = _settings.broker_url
# By default kombu checks no certificate of Redis, and no host name of RabbitMQ. Flower's page of queues reads it, too.
broker_use_ssl = tls_options(broker_url)

# A broker that comes up late, or goes away for a weekend, is waited for, without end.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None

broker_transport_options = (
    {
        # Taking, acking and waiting that no kill can lose: see webhooks.transport.
        OPTION: _settings.atomic_transport,
        # One customer's events, or one endpoint's deliveries, do not hold up the others': see webhooks.lanes.
        LANES_OPTION: Lanes(queues=lanes.QUEUES, joined=lanes.JOINED, lane_of="webhooks.rules.lanes:lane_of_message"),
        # Follows from the deadlines: see Settings.visibility_timeout_s.
        "visibility_timeout": _settings.visibility_timeout_s,
        # Retries that come due must not starve new events, nor the other way round.
        "queue_order_strategy": "round_robin",
        # A Redis that is paused, or behind a dead route, keeps connections open and says nothing: notice it.
        "socket_connect_timeout": 5,
        "socket_timeout": 30,
        "socket_keepalive": True,
        "health_check_interval": 25,
    }
    if _on_redis
    # RabbitMQ: publishing returns when the broker has the message, not when the socket took it.
    else {"confirm_publish": True}
)

# ── Messages ────────────────────────────────────────────────────────────────────────────────────────────────────────
# JSON only: whoever can write to the broker could run code in a worker that reads pickle.
task_serializer = "json"
accept_content = ["json"]
enable_utc = True

# What a producer waits for a broker that is away, in all: see webhooks.transport.bounded.
broker_connection_timeout = _settings.publish_timeout_s
# What a worker does: about eight seconds of tries.
task_publish_retry = True
task_publish_retry_policy = {"max_retries": 10, "interval_start": 0, "interval_step": 0.2, "interval_max": 1}

# ── Queues ──────────────────────────────────────────────────────────────────────────────────────────────────────────
# "celery" is where the message of a producer with nothing but Celery lands, by Celery's own default. Ours have names
# of their own, so that another application's worker on the same broker does not take them.
task_default_queue = "celery"
# Each has its own exchange and key: Celery binds a queue without them to exchange "celery" with key "celery", and then
# a producer that publishes there, as clients in other languages do, has its message copied into every queue.
task_queues = [Queue(name, Exchange(name), routing_key=name) for name in lanes.QUEUES]
task_routes = {
    "webhooks.deliver": {"queue": "webhooks.deliver"},
    "webhooks.send": {"queue": "webhooks.send"},
    "webhooks.write_log": {"queue": "webhooks.send"},
}

# ── Never lose a task ───────────────────────────────────────────────────────────────────────────────────────────────
# A message is acked after what it caused is written, not when it is taken.
task_acks_late = True
# Celery drops messages that it cannot read, and those of unknown tasks; ours end in the collection `deadletters`.
worker_consumer = "webhooks.worker.consumer:DurableConsumer"

# ── Results and events ──────────────────────────────────────────────────────────────────────────────────────────────
# The logs in MongoDB are the results. Without a backend no result is written, and none is forgotten anywhere.
result_backend = None
task_ignore_result = True
# Task events are for who looks; until then they are off. Flower turns them on.
worker_send_task_events = False

# ── Worker ──────────────────────────────────────────────────────────────────────────────────────────────────────────
# Celery's own extension point: all that the worker does is done for many messages at a time (`webhooks.worker.pool`).
worker_pool = "webhooks.worker.pool:BatchPool"
worker_concurrency = _settings.concurrency
# One message waiting for each thread hides the round trip to the broker; more would only be held up behind a slow
# receiver, while another worker is idle.
worker_prefetch_multiplier = 1
# Without a rate limit on any task the buckets are only work.
worker_disable_rate_limits = True
# Our `logging` lines go where Celery's go.
worker_redirect_stdouts = False
