"""Where the code of jobs comes from: archives, git remotes, notebooks, images."""
