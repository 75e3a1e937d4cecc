"""What all commands share: starting up, joining processes, meshes from flags, watching text appear.

It may use the library, but not `experiments.stages`.
"""
