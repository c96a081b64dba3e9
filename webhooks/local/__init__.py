"""Servers from wheels and processes kept running on one machine."""
