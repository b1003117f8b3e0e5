"""Settings of an agent and of its machine's operator."""
