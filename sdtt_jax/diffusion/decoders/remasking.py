"""Decoders that mask tokens again which were revealed, so that a later call can correct them."""

import dataclasses

import jax
import jax.numpy as jnp

from sdtt_jax.config import one_of, within

RULES = ("cap", "rescale")


@dataclasses.dataclass(frozen=True)
class Remdm:
    """Reverse steps that also mask tokens again, with the right marginals (ReMDM, arXiv 2503.00307).

    Attributes:
      eta: "cap" masks a token again with at most this chance in each step, "rescale" with this share of the
        largest chance that leaves the marginals right. 0 is the grid.
      rule: one of the two.
    """

    eta: float = 0.02
    rule: str = "cap"

    def __post_init__(self) -> None:
        within("[0, 1]", self, "eta")
        one_of(self, rule=RULES)


def remask_chances(
    options: Remdm, masked_t: jax.Array, masked_s: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """ReMDM's posterior (arXiv 2503.00307, section 3): chances of revealing and of masking again.

    Args:
      options: how much is masked again.
      masked_t, masked_s: `[]` float32, `1 - alpha` at a time t and at the later step s < t.

    Returns:
      `reveal = (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)` and `sigma`, both `[]` float32; sigma is at
      most `(1 - alpha_s) / alpha_t`, so that a position is masked at s with the same probability as ever.
    """
    largest = jnp.clip(masked_s / jnp.maximum(1 - masked_t, 1e-30), 0.0, 1.0)
    cap = options.rule == "cap"
    sigma = jnp.minimum(options.eta, largest) if cap else options.eta * largest
    reveal = (masked_t - masked_s + sigma * (1 - masked_t)) / jnp.maximum(masked_t, 1e-30)
    return jnp.clip(reveal, 0.0, 1.0), sigma
