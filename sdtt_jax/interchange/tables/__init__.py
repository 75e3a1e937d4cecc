"""Where each tensor of a foreign checkpoint goes, one table for each layout.
It may use the networks' configs and `renaming`.
"""
