"""Many devices and many processes: meshes, where arrays live on them, agreement, equal copies.

It may use `ops` and the modules at the top of the package.
"""
