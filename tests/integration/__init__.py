"""Integration tests: a real Prefect server, a real Docker Engine, real processes and git."""
