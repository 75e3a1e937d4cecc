"""Loading and exporting checkpoints: `load`, the hub, tables of layouts, export.

It may use models and everything below them.
"""
