"""What Celery runs: tasks, the pool, the consumer and its requests, start-up."""
