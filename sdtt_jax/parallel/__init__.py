"""Many devices and many processes: meshes, where arrays live on them, joint decisions, checks of copies.

It may use `ops` and the modules at the top of the package.
"""
