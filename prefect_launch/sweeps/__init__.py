"""Sweeps: the sweep file, its samplers, and the decisions of a sweep's scheduler."""
