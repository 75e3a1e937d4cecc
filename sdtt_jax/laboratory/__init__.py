"""Enumerated worlds in which laws are exact: the sampler's distribution, the optima of
rounds, trained students.
It may use everything below evaluation.
"""
