"""Measurements: likelihood, generation quality, speed, and what can be computed exactly."""
