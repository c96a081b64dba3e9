"""Periodic jobs of a worker."""
