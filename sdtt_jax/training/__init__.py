"""The one training loop: optimizers, state, step, loop, metrics, watchdog.

It may use checkpoints and the layers below; its loss is a function that it is given, and it imports no
network, no diffusion and no data.
"""
