"""The main path as steps for many messages at a time: accept, claim, attempt, record."""
