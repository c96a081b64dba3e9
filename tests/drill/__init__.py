"""The monitoring drill: break one part of a running system, and see which alert fires when. See docs/monitoring.md."""
