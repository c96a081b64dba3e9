"""kombu's Redis transport, made atomic: a killed worker loses no message, and ETA messages wait in Redis.

Celery makes its connections with this package's ``AMQP``; ``OPTION`` in ``broker_transport_options`` enables it.

* **Taking** is one script (``TAKE``). It moves as many messages as the prefetch allows from the queues to ``unacked``
  and ``unacked_index``. Queues take turns; priorities are strict, as in kombu. In a queue with lanes (``LANES_OPTION``)
  the lanes take turns, and priorities are ignored.
* **Acks** travel with the next take, or alone if none follows (``SETTLE``). Each taking of a message makes a new tag,
  so a late ack cannot affect another worker's hold. After a lost connection acks use the next one.
* **ETA messages** wait in a sorted set, scored by Redis's clock. A plain producer's are put there by the first take.
  The first take after the due time moves them to their queue.
* **A dead worker's messages** come back when its lease lapses (``LEASE``, ``OVERDUE``); a tag begins with the process's
  token. Messages held without a lease come back after ``visibility_timeout``. Those of a stopping worker, and rejected
  ones, come back at once, as the next to be taken.
* **A lost connection** returns no messages: running tasks finish and ack over the next connection.
* **This package's messages** are stored without what workers assume anyway (`compact`).
* **Other clients' messages** are taken as by kombu, also without headers (task protocol 1). An unreadable one reaches
  the consumer as a message that cannot be decoded (`NO_MESSAGE`).
* **A full Redis** (``maxmemory``) refuses only publishing; taking and acks continue, so it drains.

Keys: kombu's lists, ``unacked`` and ``unacked_index`` in kombu's format, so plain producers and workers can share them
(a plain worker does not see parked messages or lanes). Besides the keys of `lanes`: ``webhooks.parked.<queue>``,
``webhooks.wake.<queue>`` (wakes one idle worker) and ``webhooks.restoring`` (lock of the search for overdue messages),
all with kombu's ``global_keyprefix``. Needs Redis 7.0 or Valkey, no cluster.
"""
