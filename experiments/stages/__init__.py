"""The stages of a run, and the directory that they fill.

They may use the library and `experiments.settings`; only the commands use them.
"""
