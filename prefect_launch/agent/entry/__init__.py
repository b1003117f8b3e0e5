"""Ways to start an agent: in a process, as a scheduled flow, as a Prefect worker."""
