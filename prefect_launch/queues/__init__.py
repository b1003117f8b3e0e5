"""Queues: their configuration, their template variables, why their items wait."""
