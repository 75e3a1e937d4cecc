"""Measures of a model: generation quality, likelihood, cloze tasks, latency, and the gain of a round.

It may use models, interchange and everything below them.
"""
