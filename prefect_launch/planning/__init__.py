"""Planning: from a launch spec to the plan of one run."""
