"""The registries that images are looked up in, pushed to and pulled from."""
