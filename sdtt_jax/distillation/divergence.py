"""Divergences, by name, between the student's and the target's distribution at a position.

Each function takes `student` and `target`, `[..., vocab]` log-probabilities, and `num_entries`, how many
columns count, MASK included; the rest is padding. It returns `[...]`, for the two KL divergences in nats.

Everything is computed from log-probabilities in float32 (or the dtype given, if wider). SUBS keeps impossible
entries at a finite -1e6, so that 0 * log 0 is 0 here in values and in gradients. Padding has no probability,
so only `mse` and `log-l1`, which compare the log-probabilities themselves, need to know about it. As in the
reference code, these two also compare the entry of MASK: where the logits that the networks give to MASK
differ, so do they, and by a part of the loss that says nothing about tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdtt_jax.tables import Rows


def kl_bwd(student: jax.Array, target: jax.Array, num_entries: int) -> jax.Array:
    """KL(student ‖ target), the paper's default; its optimum is the targets' geometric mean.

    Examples:
      >>> student, target = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
      >>> f"{kl_bwd(student, target, num_entries=2):.4f}"
      '0.1438'
    """
    del num_entries
    return (jnp.exp(student) * (student - target)).sum(axis=-1)


def kl_fwd(student: jax.Array, target: jax.Array, num_entries: int) -> jax.Array:
    """KL(target ‖ student); its optimum is the targets' mean."""
    del num_entries
    return (jnp.exp(target) * (target - student)).sum(axis=-1)


def mse(student: jax.Array, target: jax.Array, num_entries: int) -> jax.Array:
    """Mean squared difference of log-probabilities over the entries."""
    return jnp.square(_difference(student, target, num_entries)).sum(axis=-1) / num_entries


def tvd(student: jax.Array, target: jax.Array, num_entries: int) -> jax.Array:
    """Total variation distance, `sum |p - q| / 2`."""
    del num_entries
    return 0.5 * jnp.abs(jnp.exp(student) - jnp.exp(target)).sum(axis=-1)


def log_l1(student: jax.Array, target: jax.Array, num_entries: int) -> jax.Array:
    """Sum of |log p - log q|: what the reference code calls "tvd"."""
    return jnp.abs(_difference(student, target, num_entries)).sum(axis=-1)


def _difference(student: jax.Array, target: jax.Array, num_entries: int) -> jax.Array:
    return jnp.where(jnp.arange(student.shape[-1]) < num_entries, student - target, 0.0)


Divergence = Callable[[jax.Array, jax.Array, int], jax.Array]

DIVERGENCES: Rows[Divergence] = Rows(
    {"kl-bwd": kl_bwd, "kl-fwd": kl_fwd, "mse": mse, "tvd": tvd, "log-l1": log_l1}
)
