"""Runner of the resource `vertex`: custom jobs of Vertex AI, Google Cloud's service for training, over its REST API."""
