"""Unit tests: no server, no engine, no network; the whole folder takes seconds."""
