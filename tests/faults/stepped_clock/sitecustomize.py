"""Runs first in a worker whose clock is to be stepped: Python's wall clock plus the seconds that a file holds.

The file is a double, read through shared memory at each look at the clock; ``WEBHOOKS_TEST_CLOCK`` names it. The
monotonic clock stays as it is, as it does when an operator or NTP steps a real clock. Stepping the machine's own clock
would need root and strike everything else on it; clock namespaces leave the wall clock alone.
"""

import datetime
import mmap
import os
import struct
import time

_real_time, _real_time_ns, _real_datetime = time.time, time.time_ns, datetime.datetime

with open(os.environ["WEBHOOKS_TEST_CLOCK"], "rb") as _file:  # noqa: PTH123 - as little as possible is imported here
    _shared = mmap.mmap(_file.fileno(), 8, prot=mmap.PROT_READ)


def _ahead_s() -> float:
    return struct.unpack_from("d", _shared)[0]


class _AnyDatetime(type):
    """C code makes plain datetimes: they must count as instances."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _real_datetime)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _real_datetime)


class _Datetime(datetime.datetime, metaclass=_AnyDatetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return _real_datetime.now(tz) + datetime.timedelta(seconds=_ahead_s())

    @classmethod
    def utcnow(cls) -> datetime.datetime:
        return cls.now(datetime.UTC).replace(tzinfo=None)


time.time = lambda: _real_time() + _ahead_s()
time.time_ns = lambda: _real_time_ns() + int(_ahead_s() * 1_000_000_000)
datetime.datetime = _Datetime
