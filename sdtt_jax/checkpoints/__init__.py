"""Verified checkpoints: the Orbax store, a digest of every leaf, and metadata.

It may use `parallel`, `ops` and the modules at the top of the package, but not `training`.
"""
