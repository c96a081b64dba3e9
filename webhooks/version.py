"""The version of this package: what packaging reads and what the `User-Agent` of a request says."""

__version__ = "0.1.0"
