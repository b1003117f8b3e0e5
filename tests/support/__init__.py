"""What the tests need around them: servers, an engine and images, each started lazily and stopped for certain."""
