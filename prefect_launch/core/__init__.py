"""Building blocks that know nothing of launch: states, names, locks, durations, JSON rules."""
