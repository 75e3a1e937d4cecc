"""Work on selected positions and on bits: categorical draws, chunks of rows, the fused head and
loss, digests.
It may use only `parallel` and the modules beside the packages.
"""
