"""The `local-container` resource, on the Docker Engine API."""
