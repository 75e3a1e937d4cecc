"""SDTT: self-distillation through time for masked diffusion language models, in JAX.

import jax, sdtt_jax
model = sdtt_jax.load("runs/demo")
tokens = model.sample(jax.random.key(0), num_samples=4, num_steps=8)
print(*map(model.tokenizer.decode, tokens), sep="\\n")
"""

from typing import TYPE_CHECKING, Any

from sdtt_jax.version import __version__ as __version__

__all__ = [
    "load",
    "load_mdlm_small",
    "load_scaling_student",
    "load_scaling_teacher",
    "load_small_student",
]

if TYPE_CHECKING:
    from sdtt_jax.interchange.load import (
        load,
        load_mdlm_small,
        load_scaling_student,
        load_scaling_teacher,
        load_small_student,
    )


def __getattr__(name: str) -> Any:
    # Imported when asked for: it draws in most of the library, which a user of one part does not need.
    if name in __all__:
        from sdtt_jax.interchange import load as loading

        return getattr(loading, name)
    raise AttributeError(f"module 'sdtt_jax' has no attribute {name!r}")
