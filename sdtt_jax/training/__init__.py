"""The one training loop: optimizers, state, step, loop, metrics, watchdog.

It may use checkpoints and the layers below; it is given its loss as a function, and knows no network, no
diffusion and no data.
"""
