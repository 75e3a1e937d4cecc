"""The one training loop: optimizers, sharding, step, loop, checkpoints, metrics.

It is given its loss as a function and knows nothing of networks, diffusion, distillation or data.
"""
