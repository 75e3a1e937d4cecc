"""Published checkpoints in, checkpoints out: `load`, the hub, tables of layouts, export.

It may use models and everything below them.
"""
