"""Where the code of jobs comes from."""
