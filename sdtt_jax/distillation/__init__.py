"""Self-distillation through time: the teacher's targets, divergences, the loss, and the rounds.

It may use diffusion and the layers below it, never networks or data.
"""
