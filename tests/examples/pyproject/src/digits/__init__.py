"""A project in the src layout."""
