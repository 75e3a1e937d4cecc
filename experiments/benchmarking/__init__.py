"""The parts of the benchmark: lean path and naive twin side by side, each in a process of its own.

They may use the library and `experiments.settings`; only `experiments.benchmark` and `tools` use them.
"""
