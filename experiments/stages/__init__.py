"""The stages of a run, and the directory that they fill.

They may use the library and `experiments.settings`; the commands use them, `launch.ahead`,
which compiles what they would, and `tools`.
"""
