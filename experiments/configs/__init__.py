"""The configs of runs, one file each, with `get_config()`.

They may use `experiments.settings`, the library's configs, and each other.
"""
