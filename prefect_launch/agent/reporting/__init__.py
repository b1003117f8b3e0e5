"""Reports of an agent: heartbeats, status, shutdown requests, notes on why items wait."""
