"""The `local-process` resource."""
