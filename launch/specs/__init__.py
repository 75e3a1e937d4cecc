"""Examples of specs for `launch.pod`, one file each, with `get_config()`.

They may use `launch.pods.spec`.
"""
