"""Worlds small enough to enumerate: the sampler's exact law, the optimum of each round, trained students.

It may use everything below evaluation.
"""
