"""What the C library does with memory that a program frees."""

import contextlib
import ctypes

from sdtt_jax.networks.config import TransformerConfig

# Layers × width², of which the demo has 65,536 and the paper's small size 7.1 million.
LARGEST = 2**21
# Of glibc's malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed_memory(model: TransformerConfig) -> None:
    """Lets glibc keep what a small model's step frees for the next one, and not give it back to the system.

    XLA's CPU client frees its temporary arrays after every step. The system would zero and map all of them
    anew: 38,000 page faults in a training step of the demo, and a fifth of its CPU time (0.70 s; 0.56 so).
    Large models do without: two layers of the paper's small size gain 8 %, but holes between their arrays
    took the peak from 3.4 to 4.8 GB.

    Call it before JAX has threads of its own.
    """
    if model.num_layers * model.embed_dim**2 > LARGEST:
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)
        mallopt(ARENA_MAX, 1)  # those of other threads than the first are too small for such arrays
