"""Queues: options, deployments, agent status, wait reasons, and the session that reads them."""
