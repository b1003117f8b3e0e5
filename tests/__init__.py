"""The tests: unit (in-memory twins), integration (real server, engine, git) and acceptance (the CLI alone)."""
