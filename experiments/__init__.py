"""The commands: each turns flags into calls of the library.

They may use `sdtt_jax`, which never imports them.
"""

import gc

import sdtt_jax.renamed  # noqa: F401 - a module that has moved is answered by its new name

# Importing a program creates half a million objects, and none of them is garbage. Some 400 garbage
# collections took 0.3 of the 1.9 s of every start. (Python's own threshold is 700.)
gc.set_threshold(10_000, 20, 20)
