"""Who gets which of this machine's GPUs, and how much of its CPUs and memory: one agent's book of them."""
