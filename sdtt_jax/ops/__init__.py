"""Work on selected positions and on bits: categorical draws, chunks of rows, fused head and loss, digests.

It may use `parallel` and the modules at the top of the package.
"""
