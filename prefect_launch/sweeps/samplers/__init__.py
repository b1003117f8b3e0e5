"""Samplers: which parameters the next trial of a sweep has."""
