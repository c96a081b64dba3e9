"""What a service loads to hand in events. Loads nothing of the worker."""
