"""Housekeeping: what past runs left on the machine, removed by age and size."""
