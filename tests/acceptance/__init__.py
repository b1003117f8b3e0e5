"""Acceptance tests: what a user does with the command line, and nothing else."""
