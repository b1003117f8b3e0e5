"""Resources that run jobs: the contract of a runner, one folder for each kind of resource, and the handle on a run."""
