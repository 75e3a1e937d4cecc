"""The maintainers' programs: faults and kills, floors of the requirements, tables of memory and of what fits.

They may use everything; nothing uses them.
"""
