"""Masked diffusion: the seam to the network, schedules, the forward process, the NELBO and the sampler.

Pure functions of a `MaskedDiffusion`, parameters, keys and small frozen configs; knows no network, only
what `denoiser.DenoiserLike` asks of one.
"""
