"""Many devices and many processes: meshes, where arrays live on them, agreement between
processes, equal copies.
It may use only `ops` and the modules beside the packages.
"""
