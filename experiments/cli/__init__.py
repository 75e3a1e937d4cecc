"""What every command shares: starting up, joining processes, meshes from flags, watching files. It may use
the library, and knows nothing of stages.
"""
