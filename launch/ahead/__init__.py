"""The cost of programs on accelerators that are not present: compiled, counted and predicted.

It may use the library and `experiments`; only `launch.compile` and `tools` use it.
"""
