"""Runner of `kubernetes`: Jobs and custom resources of a cluster, from `resource_args.kubernetes` to how they ended."""
