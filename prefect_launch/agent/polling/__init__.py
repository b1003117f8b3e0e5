"""Polling: which items an agent takes from its queues, and what wakes it."""
