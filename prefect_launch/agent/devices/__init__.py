"""Device allocation: which item gets which of this machine's GPUs, and how much of its CPUs and memory."""
