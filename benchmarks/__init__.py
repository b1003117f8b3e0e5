"""Measurements of prefect-launch, each figure beside the floor that the same machine set in the same run."""
