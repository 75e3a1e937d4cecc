"""Where each tensor of a published checkpoint goes: one table for each layout.

It may use the networks' configs and `interchange.renaming`.
"""
