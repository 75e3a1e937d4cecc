"""Masked diffusion as pure functions: noise schedules, the forward process, the NELBO and the sampler.

It may use `ops`, `parallel` and the modules at the top of the package; it sees networks only as
`DenoiserLike`.
"""
