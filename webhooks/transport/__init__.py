"""kombu's Redis transport, made atomic: a worker killed at any instant loses no message, and waiting costs it nothing.

Owns how messages move inside Redis between producers and workers. Never looks into a message's body. `app` hands its
``AMQP`` to Celery, and ``broker_transport_options`` choose it (``OPTION``); the broker's URL stays ``redis://…``.

What is promised, and how:

* **Taking** is one script (``TAKE``): it pops messages off the queues' lists and notes them in ``unacked`` and
  ``unacked_index``, as many as the prefetch allows. So a message is always in exactly one place of Redis. Queues take
  turns; among priorities the order is strict, as in kombu. In a queue with **lanes** (`lanes`; ``LANES_OPTION``) the
  lanes take turns instead, and priorities are not heeded: a producer must not pass the others by.
* **Acks** are collected, and travel with the next take, or alone when there is none to come (``SETTLE``). Each hold of
  a message has a tag of its own, made when it is taken: an ack that comes late cannot touch the hold of another
  worker, and an ack whose connection is gone is sent over the next one.
* **A message with an ETA** waits in a sorted set, scored by when it is due on Redis's clock, from its publishing on or,
  from a plain producer, from when it is first taken. The take that comes after its time moves it to its queue.
* **What a dead worker held** comes back when its lease has lapsed (``LEASE``, ``OVERDUE``): a process renews one, and
  each tag begins with its token. What is held without a lease comes back ``visibility_timeout`` later. What a stopping
  worker held, or a task rejected, comes back at once, to be taken next.
* **A lost connection** gives nothing back: the tasks at work finish, and ack over the next connection.
* **Messages of other clients** are taken as kombu's own transport takes them, also without headers (task protocol 1).
  What cannot be read comes to the consumer as a message that cannot be decoded (`NO_MESSAGE`): it neither stops a
  worker nor is lost.
* **A full Redis** (``maxmemory``) refuses publishing alone; taking, acks and the rest go on, so it drains.

Keys: kombu's own lists, ``unacked`` and ``unacked_index`` in kombu's format, so plain producers feed it and a plain
worker takes over (but not what is parked or stands in lanes). Besides those of `lanes`: ``webhooks.parked.<queue>``,
``webhooks.wake.<queue>`` (a token for one idle worker, for a second) and ``webhooks.restoring`` (one worker at a time
looks for overdue messages); all behind kombu's ``global_keyprefix``. Needs Redis 7.0 or any Valkey. Not for a cluster,
as kombu's own.
"""
