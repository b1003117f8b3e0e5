"""Direct runs: `launch`, which runs a job here and now, without a queue."""
