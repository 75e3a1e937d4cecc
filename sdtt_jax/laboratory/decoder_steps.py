"""The exact laws of decoders that make calls of their own: what each does to every partly masked sequence."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sdtt_jax.diffusion.decoders.speculative import Speculative, relaxed
from sdtt_jax.laboratory.world import Array, patterns, states_with_pattern, strides


class Table(NamedTuple):
    """What a step of a decoder is computed from.

    Attributes:
      own: `[states, L, V]`, what the model draws from, in the order of `all_states`.
      helper: the same of the other model; of a causal one only what has nothing masked on the left is read.
      causal: whether the helper is a causal model.
    """

    own: Array
    helper: Array
    causal: bool

    @property
    def length(self) -> int:
        return int(self.own.shape[1])

    @property
    def size(self) -> int:
        return int(self.own.shape[2])


def speculative_step(options: Speculative, table: Table, law: Array) -> tuple[Array, float]:
    """A draft and its verification: the law after it, and the mean number of calls.

    The neighbours of a token are all alike, so that they are taken in the order of their ids.

    Args:
      options: window and relaxation.
      table: of the drafting model and of the verifying one.
      law: `[states]`, in the order of `all_states`.
    """
    length, size = table.length, table.size
    step, after, calls = strides(size, length), np.zeros_like(law), 0.0
    for pattern in patterns(length):
        source = states_with_pattern(pattern, size, length)
        if not pattern or not law[source].any():
            after[source] += law[source]
            continue
        calls += 2 * float(law[source].sum())
        count = min(options.window, len(pattern))
        windows = (
            [pattern[:count]] if table.causal else list(itertools.permutations(pattern, count))
        )
        for window in windows:
            context, weight = source[:, None], law[source][:, None] / len(windows)
            for position in window:
                q = np.broadcast_to(table.own[source, None, position], (*context.shape, size))
                p = table.helper[context, position]
                accepted, refused = _verdicts(q, p, options.relaxation)
                shown = context[..., None] + (np.arange(size) - size) * step[position]
                np.add.at(after, shown, weight[..., None] * refused)
                weight = (weight[..., None] * accepted).reshape(len(source), -1)
                context = shown.reshape(len(source), -1)
            np.add.at(after, context, weight)
    return after, calls


def _verdicts(q: Array, p: Array, relaxation: float) -> tuple[Array, Array]:
    """Probability of drafting and keeping each token, and of drawing each in place of one that is not."""
    if relaxation == 0:
        return np.minimum(q, p), np.maximum(p - q, 0.0)
    size = p.shape[-1]
    accepted, refused = np.zeros_like(p), np.zeros_like(p)
    alike = jnp.ones((*p.shape[:-1], size))
    for token in range(size):
        drafted = jnp.full(p.shape[:-1], token)
        lent = relaxed(jnp.log(jnp.maximum(p, 1e-37)), drafted, alike, relaxation)
        loose = np.exp(np.asarray(lent, np.float64))
        accepted[..., token] = np.minimum(q[..., token], loose[..., token])
        left = np.maximum(loose - q, 0.0)
        whole = left.sum(axis=-1, keepdims=True)
        share = np.where(whole > 0, left / np.where(whole > 0, whole, 1.0), p)
        refused += (q[..., token] - accepted[..., token])[..., None] * share
    return accepted, refused


STEPS: dict[type, Callable[[Any, Table, Array], tuple[Array, float]]] = {
    Speculative: speculative_step,
}
