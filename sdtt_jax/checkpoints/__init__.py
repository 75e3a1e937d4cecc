"""Checkpoints that are whole or refused: the Orbax store, a digest of every leaf, and metadata.

It may use `parallel`, `ops` and the modules at the top of the package, and knows nothing of training.
"""
