"""The tests: unit (in-memory fakes), integration (real server, engine, git) and acceptance (the CLI alone)."""
