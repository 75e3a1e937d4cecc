"""The files that start a run on a pod: written from one spec, for five launchers.

It may use the library, the commands and `launch.accelerators`; only `launch.pod` and the specs use it.
"""
