"""Building blocks that know nothing of launch: states, names, units, files, locks, masks, validation."""
