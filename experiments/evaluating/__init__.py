"""The parts of `experiments.evaluate`.

They may use the library and `experiments.cli`.
"""
