"""Demo: the whole product on one machine, for the first minute of a new user."""
