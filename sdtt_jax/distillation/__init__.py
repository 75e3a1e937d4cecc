"""Self-distillation through time: divergences, teacher trajectories and targets, the loss, rounds.

Pure functions on top of `sdtt_jax.diffusion`; knows no network and no data.
"""
