"""What a producer's installation can do, in environments of its own: `python -m tests.producers`."""
