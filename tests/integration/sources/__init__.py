"""Where code comes from, over real networks of this machine's own."""
