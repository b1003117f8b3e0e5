"""Container registries: digests are looked up there, images pushed and pulled."""
