"""The stages of a run and the directory that they fill. Each composes the library; only the commands in
`experiments` may use this room.
"""
