"""Sources of job code: archives, git remotes, notebooks, images."""
