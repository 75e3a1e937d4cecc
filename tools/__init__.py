"""The maintainers' programs: faults and kills, the floors of the requirements, tables of memory.
They may use everything; nothing uses them.
"""
