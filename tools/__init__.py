"""The maintainers' programs: faults and kills, floors of the requirements, a table of what fits.

They may use everything; nothing uses them.
"""
