"""In a process that finds this file on its path: look names up at a test's name server.

WEBHOOKS_TEST_DNS_PORT is where it listens. What ends in ``.test`` is this machine, once the name server answers.
"""

import os
import socket

import dns.resolver

_resolver = dns.resolver.Resolver(configure=False)
_resolver.nameservers = ["127.0.0.1"]
_resolver.port = int(os.environ["WEBHOOKS_TEST_DNS_PORT"])
dns.resolver.default_resolver = _resolver

_look_up = socket.getaddrinfo


def _look_up_here(host, *args, **kwargs):
    return _look_up("127.0.0.1" if str(host).endswith(".test") else host, *args, **kwargs)


socket.getaddrinfo = _look_up_here
