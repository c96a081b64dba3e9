"""MongoDB, one collection a module."""
