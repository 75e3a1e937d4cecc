"""What a step costs on accelerators that are not there: compiled, counted and predicted.

It may use the library and `experiments`; only `launch.compile` and `tools` use it.
"""
