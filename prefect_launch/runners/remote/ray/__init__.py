"""Runner of the resource `ray`: jobs of a Ray cluster, over its Jobs REST API."""
