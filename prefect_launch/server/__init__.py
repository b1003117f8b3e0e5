"""The Prefect server: protocol, client, HTTP transport, values and secrets."""
