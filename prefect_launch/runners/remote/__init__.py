"""Runners for work that runs elsewhere: clusters and services that queue a job and start it themselves."""
