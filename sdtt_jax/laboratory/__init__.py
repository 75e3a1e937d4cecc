"""Worlds small enough to enumerate: the sampler's exact law, the optimum of each round, trained students.

A *law* here is the exact probability distribution of the texts that a sampler or a student writes.

It may use everything below evaluation.
"""
