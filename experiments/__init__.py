"""The commands: each turns flags into calls of the library.

They may use `sdtt_jax`; nothing there imports them.
"""

import gc

# Half a million objects come to life while a program is imported, and none of them is garbage. Some 400
# searches for garbage took 0.3 of the 1.9 s of every start. (Python's own threshold is 700.)
gc.set_threshold(10_000, 20, 20)
