"""Tests of sweeps that need no server."""
