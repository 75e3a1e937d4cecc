"""Measures of a model: generation quality, likelihood, clozes, latency, and what a round gained.

It may use models, interchange and everything below them.
"""
