"""The stages of a run, and the directory that they fill.

They may use the library and `experiments.settings`. They are used by the commands, by
`launch.ahead`, which compiles the same programs, and by `tools`.
"""
