"""From source to image: the build context, its Dockerfile, what builds it, and the registries that images go to."""
