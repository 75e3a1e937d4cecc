"""Masked diffusion as pure functions: noise schedules, the forward process, the NELBO and the sampler.

It may use `ops`, `parallel` and the modules at the top of the package, and knows no network but by its seam.
"""
