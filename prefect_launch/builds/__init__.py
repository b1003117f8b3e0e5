"""Images from code: the build context, its Dockerfile, the builders, and where built images are kept."""
