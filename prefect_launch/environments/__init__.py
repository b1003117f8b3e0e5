"""Python environments of local processes: a virtual environment for each set of requirements, made once and kept."""
