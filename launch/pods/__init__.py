"""The files that start a run on a pod: written from one spec, for five launchers.

It may use the package's config and errors; only `launch.pod` uses it.
"""
