"""Checkpoints that are whole or refused: the Orbax store, digests of every leaf, and their metadata.
It may use `parallel`, `ops` and the modules beside the packages, and knows no training.
"""
