"""The launch spec: what one item asks for."""
