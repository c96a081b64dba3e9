"""Flower's options for `celery -A webhooks flower`, each with its reason. Flower runs this file before it starts."""

# Who sees Flower sees every company's webhooks and can stop workers, and Flower itself asks for no password. Beyond
# loopback it belongs behind `--auth` or `--basic-auth`: see the README.
address = "127.0.0.1"

# An attempt at a glance: which event went to which webhook (args), and what came back (result, or the exception of a
# failed attempt). The payload is in none of them.
tasks_columns = "name,state,args,result,exception,retries,received,runtime,kwargs,uuid,worker"

# Flower's memory is for looking at what happens now; the logs in MongoDB are what happened.
max_tasks = 10_000
