"""The `slurm` resource."""
