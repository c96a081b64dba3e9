"""Embedded servers, supervised processes, and the commands `up` and `demo` built on them."""
