"""What a local process runs in: a virtual environment for each set of requirements, made once and kept."""
