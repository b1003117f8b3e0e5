"""Jobs: made, stored, found, refused."""
