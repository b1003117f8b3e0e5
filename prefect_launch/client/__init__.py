"""Client side: what a caller uses to queue jobs, make them, and follow their runs."""
