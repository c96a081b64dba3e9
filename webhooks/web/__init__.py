"""Flower's pages."""
