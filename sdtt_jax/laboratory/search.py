"""A search for the table of predictions whose samples are nearest to the language.

The gradient of the exact law (`law`) is followed by L-BFGS or Adam. L-BFGS runs in coordinates
that are scaled by how often a prediction is used: in the built-in world 40 such steps reach what 300
plain ones did not.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from sdtt_jax.config import choose, whole
from sdtt_jax.keys import check_seed
from sdtt_jax.laboratory.law import Paths, StateTable, sampler_law
from sdtt_jax.laboratory.world import Array

# Shares of KL(samples || chain), KL(chain || samples) and total variation.
OBJECTIVES = {
    "kl": (1.0, 0.0, 0.0),
    "kl_reverse": (0.0, 1.0, 0.0),
    "sum": (1.0, 1.0, 0.0),
    "tv": (0.0, 0.0, 1.0),
}
# Total variation has a kink where a sample is as likely as in the language. The search follows a
# hyperbola that rounds the kink by this share of the probability: L-BFGS stalls without.
_KINK = 0.003
_SMALLEST = 1e-37  # the least probability under a logarithm, in float32
# Share of the gain promised by the slope that a step of L-BFGS must bring. With a small share it
# overshoots once, predictions saturate, and they stay so: in the built-in world the sum of both KLs
# at 4 calls then ends at 0.202 instead of 0.197.
_ENOUGH = 0.3
_SHORTEST = 1e-3  # step of L-BFGS, as a share of the one that it proposes
_ADAM_RATE = 0.3  # at its start; it falls to zero along a cosine
_RARELY_USED = 1e-4  # predictions used less often than this are scaled as if they were


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The search for the best table."""

    # lbfgs_steps, adam_steps: of each search.
    lbfgs_steps: int = 80
    adam_steps: int = 300
    seed: int = 0  # of the noise in starts

    def __post_init__(self) -> None:
        whole(1, self, "lbfgs_steps", "adam_steps")
        check_seed(self.seed)


class TableMixture(NamedTuple):
    """K tables, one of which is drawn for each text. A single table is a mixture of one."""

    shares: Any  # [K] logits
    logits: tuple[Any, ...]  # a table of logits, with a leading axis of K


def single(logits: StateTable) -> TableMixture:
    """A mixture of one table."""
    return TableMixture(np.zeros(1, np.float32), tuple(np.asarray(rows)[None] for rows in logits))


class SearchEnd(NamedTuple):
    """Where a search ended."""

    value: float  # of the objective
    mixture: TableMixture  # of NumPy arrays


class Problem(NamedTuple):
    """Mixtures of one size at one number of calls, as functions of one flat vector in float32."""

    flatten: Callable[[TableMixture], Array]
    unflatten: Callable[[Any], TableMixture]
    # (flat, shares of the objectives, kink) -> (value, gradient)
    evaluate: Callable[[Any, Array, float], tuple[jax.Array, jax.Array]]
    scales: Callable[[Any], jax.Array]  # of L-BFGS's coordinates


def make_problem(paths: Paths, example: TableMixture, ways: Array, chain: Array) -> Problem:
    """The functions that a search needs, each compiled when it is first called.

    Args:
      paths: those of the world's `StateLayout`.
      example: a mixture of the size that is sought.
      ways: `[S + 1]`, from `reveal_ways`, for at most as many groups as calls.
      chain: `[V^L]`, the language.
    """
    paths = jax.tree.map(jnp.asarray, paths)
    ways32, chain32 = jnp.asarray(ways, jnp.float32), jnp.asarray(chain, jnp.float32)
    unflatten: Callable[[jax.Array], TableMixture] = ravel_pytree(example)[1]

    def law_of(shares: jax.Array, log_probs: StateTable) -> jax.Array:
        laws = jax.lax.map(lambda own: sampler_law(paths, own, ways32), log_probs)
        return jax.nn.softmax(shares) @ laws

    def value(flat: jax.Array, shares: jax.Array, kink: float) -> jax.Array:
        """The objective; `kink` is how round total variation is at its kink, as a share of probabilities."""
        mixture = unflatten(flat)
        law = law_of(mixture.shares, jax.tree.map(jax.nn.log_softmax, mixture.logits))
        log_ratio = jnp.log(jnp.maximum(law, _SMALLEST)) - jnp.log(chain32)
        apart = jnp.sqrt(jnp.square(law - chain32) + jnp.square(kink * chain32))
        return shares @ jnp.stack([law @ log_ratio, -(chain32 @ log_ratio), apart.sum() / 2])

    def scales(flat: jax.Array) -> jax.Array:
        """One over the root of how often each prediction is used."""
        mixture = unflatten(flat)
        log_probs = jax.tree.map(jax.nn.log_softmax, mixture.logits)
        used = jax.grad(lambda log_probs: law_of(mixture.shares, log_probs).sum())(log_probs)
        rows = [jnp.broadcast_to(u.sum(axis=-1, keepdims=True), u.shape) for u in used]
        ones = jnp.ones_like(mixture.shares)
        return jax.lax.rsqrt(ravel_pytree(TableMixture(ones, tuple(rows)))[0] + _RARELY_USED)

    # With NumPy and in one program: outside of `jit` JAX would compile each operation for each shape.
    return Problem(
        lambda mixture: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(mixture)]),
        jax.jit(unflatten),
        jax.jit(jax.value_and_grad(value)),
        jax.jit(scales),
    )


def search(
    problem: Problem, start: TableMixture, objective: str, optimizer: str, config: SearchConfig
) -> SearchEnd:
    """Follows the gradient from a mixture of the problem's size; returns the better of its end and the start.

    `objective` and `optimizer` are names in `OBJECTIVES` and `OPTIMIZERS`.
    """
    choose("objective", objective, OBJECTIVES)
    choose("optimizer", optimizer, OPTIMIZERS)
    shares, first = np.array(OBJECTIVES[objective], np.float32), problem.flatten(start)
    ends = [first, OPTIMIZERS[optimizer](problem, first, shares, config)]
    values = [float(problem.evaluate(flat, shares, 0.0)[0]) for flat in ends]
    better = int(values[1] < values[0])  # not where it is NaN
    return SearchEnd(values[better], jax.device_get(problem.unflatten(ends[better])))


@functools.cache
def _adam_method(steps: int) -> optax.GradientTransformation:
    return _compiled(optax.adam(optax.cosine_decay_schedule(_ADAM_RATE, steps), b2=0.99))


@functools.cache
def _lbfgs_method() -> optax.GradientTransformation:
    return _compiled(optax.scale_by_lbfgs(memory_size=10))


def _compiled(method: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.GradientTransformation(jax.jit(method.init), jax.jit(method.update))


def _adam(problem: Problem, start: Array, shares: Array, config: SearchConfig) -> Array:
    method = _adam_method(config.adam_steps)
    flat, state = jnp.asarray(start), method.init(start)
    for _ in range(config.adam_steps):
        gradient = problem.evaluate(flat, shares, _KINK)[1]
        step, state = method.update(gradient, state)
        flat = flat + step
    return np.asarray(flat)


def _lbfgs(problem: Problem, start: Array, shares: Array, config: SearchConfig) -> Array:
    """Follows Optax's directions, with steps that are halved until they gain.

    Optax's own line search holds five copies of the gradient's program, which take 15 s to compile;
    SciPy's L-BFGS-B keeps BLAS threads spinning on vectors this short, which costs five times more.
    """
    method = _lbfgs_method()
    scales = problem.scales(start)
    flat, state, restarted = start / scales, method.init(start), True
    value, gradient = problem.evaluate(flat * scales, shares, _KINK)
    for _ in range(config.lbfgs_steps):
        direction, state = method.update(gradient * scales, state, flat)
        slope, length = -float(jnp.vdot(direction, gradient * scales)), 1.0
        while length > _SHORTEST:
            tried = flat - length * direction
            after, following = problem.evaluate(tried * scales, shares, _KINK)
            if float(after) <= float(value) + _ENOUGH * length * min(slope, 0.0):
                flat, value, gradient, restarted = tried, after, following, False
                break
            length /= 2
        else:  # no step along this direction gains anything: forget the curvature, once
            if restarted:
                break
            state, restarted = method.init(flat), True
    return np.asarray(flat * scales)


OPTIMIZERS: dict[str, Callable[[Problem, Array, Array, SearchConfig], Array]] = {
    "lbfgs": _lbfgs,
    "adam": _adam,
}
