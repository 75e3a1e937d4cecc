"""The exact laws of decoders with a step of their own: what it does to every partly masked sequence.

A law is an array `[states]`, in the order of `all_states`. A step function returns the law after the step and
the step's mean number of calls.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.diffusion.decoders.energy import Energy
from sdtt_jax.diffusion.decoders.refine import Refine
from sdtt_jax.diffusion.decoders.skeleton import Skeleton
from sdtt_jax.diffusion.decoders.speculative import Speculative, relaxed
from sdtt_jax.laboratory.world import (
    Array,
    all_states,
    masked_again,
    revealed,
    states_by_pattern,
    states_with_pattern,
    strides,
)


class StepTable(NamedTuple):
    """What a step of a decoder is computed from."""

    own: Array  # `[states, L, V]`, what the model draws from, in the order of `all_states`
    # The same for the helper. Of a causal one, `skeleton_step` reads every n-th position; the other steps
    # read only predictions with nothing masked on their left.
    helper: Array
    causal: bool  # whether the helper is a causal model
    # num_steps, call: the number of steps, and the index of this one.
    num_steps: int
    call: int = 0

    @property
    def length(self) -> int:
        return int(self.own.shape[1])


def speculative_step(options: Speculative, table: StepTable, law: Array) -> tuple[Array, float]:
    """A draft and its verification.

    All tokens count as equally near, so a token's neighbours are taken in the order of their ids.
    """
    _, length, size = table.own.shape
    step, after, calls = strides(size, length), np.zeros_like(law), 0.0
    for pattern, source in states_by_pattern(size, length):
        if not pattern or not law[source].any():
            after[source] += law[source]
            continue
        calls += 2 * float(law[source].sum())
        count = min(options.window, len(pattern))
        windows = [pattern[:count]] if table.causal else [*itertools.permutations(pattern, count)]
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
    """The chances that each token is drafted and kept, and that it is drawn in place of a refused one."""
    if relaxation == 0:
        return np.minimum(q, p), np.maximum(p - q, 0.0)
    size = p.shape[-1]
    accepted, refused = np.zeros_like(p), np.zeros_like(p)
    for token in range(size):
        loose = np.exp(np.asarray(_lent(p, token, relaxation), np.float64))
        accepted[..., token] = np.minimum(q[..., token], loose[..., token])
        left = np.maximum(loose - q, 0.0)
        whole = left.sum(axis=-1, keepdims=True)
        share = np.where(whole > 0, left / np.where(whole > 0, whole, 1.0), p)
        refused += (q[..., token] - accepted[..., token])[..., None] * share
    return accepted, refused


@functools.partial(jax.jit, static_argnames="budget")
def _lent(p: Array, token: int, budget: float) -> jax.Array:
    """The logs of `relaxed` probabilities after one drafted token, if all tokens are equally near."""
    drafted = jnp.full(p.shape[:-1], token)
    return relaxed(jnp.log(jnp.maximum(p, 1e-37)), drafted, jnp.ones(p.shape), budget)


def refine_step(options: Refine, table: StepTable, law: Array) -> tuple[Array, float]:
    """Looks at a window of the finished texts; doubted tokens are masked and drawn again."""
    _, length, size = table.own.shape
    places = (table.call - (table.num_steps - options.rounds)) * options.window
    window = (places + np.arange(options.window)) % length
    step, finished = strides(size, length), states_with_pattern((), size, length)
    shown = all_states(size, length)[finished]
    doubted = np.zeros((len(finished), length), bool)
    for place in window.tolist():
        left_out = masked_again(finished, [place], size, length)
        doubted[:, place] = table.own[left_out, place, shown[:, place]] < options.threshold
    masked = np.zeros_like(law)
    np.add.at(masked, finished + ((size - shown) * step * doubted).sum(axis=1), law[finished])
    after, redrawn = step_law(masked, table.own, reveal_all)
    return after, float(law[finished].sum()) + redrawn


def energy_step(options: Energy, table: StepTable, law: Array) -> tuple[Array, float]:
    """Picks one of two whole candidates (or takes the only one), and reveals some of its positions."""
    _, length, size = table.own.shape
    after, calls = np.zeros_like(law), 0.0
    compares = table.call < options.comparisons(table.num_steps)
    for pattern, source in states_by_pattern(size, length):
        count = even_count(length, table.num_steps, table.call)
        if not pattern or not count or not law[source].any():
            after[source] += law[source]
            continue
        calls += float(law[source].sum()) * (2 if compares else 1)
        texts, own = revealed(source, pattern, table.own, np.ones(len(source)))
        picked = own
        if compares and options.candidates == 2:
            weight = _causal_law(table)[texts] / own
            pairs = weight[:, :, None] / (weight[:, :, None] + weight[:, None, :])
            picked = 2 * own * (pairs * own[:, None, :]).sum(axis=2)
        for due in itertools.combinations(pattern, count):
            hidden = [place for place in pattern if place not in due]
            share = law[source][:, None] * picked / math.comb(len(pattern), count)
            np.add.at(after, masked_again(texts, hidden, size, length), share)
    return after, calls


def skeleton_step(options: Skeleton, table: StepTable, law: Array) -> tuple[Array, float]:
    """Writes all of the helper's tokens one by one in the first step, some of the others in a later one."""
    bones = range(0, table.length, options.every)
    if table.call > 0:
        due = even_count(table.length - len(bones), table.num_steps - 1, table.call - 1)
        return step_law(law, table.own, functools.partial(uniform_moves, due))
    for bone in bones:
        law, _ = step_law(law, table.helper, lambda *_, bone=bone: [((bone,), (), 1.0)])
    return law, len(bones)


def _causal_law(table: StepTable) -> Array:
    """The probability of every finished text under a causal helper: `[states]`, zero at the other states."""
    _, length, size = table.own.shape
    law, finished = np.zeros(len(table.helper)), states_with_pattern((), size, length)
    shown, chance = all_states(size, length)[finished], np.ones(len(finished))
    for place in range(length):
        left = masked_again(finished, range(place, length), size, length)
        chance *= table.helper[left, place, shown[:, place]]
    law[finished] = chance
    return law


def even_count(length: int, num_steps: int, call: int) -> int:
    """How many positions of a whole text a call reveals if they are spread evenly over the calls."""
    return sum(rank * num_steps // length == call for rank in range(length))


def uniform_moves(count: int, places: Sequence[int], source: Array) -> Iterator[Any]:
    """The moves that reveal `count` of the given places, every choice equally likely."""
    del source
    for chosen in itertools.combinations(places, count):
        yield chosen, (), 1 / math.comb(len(places), count)


def reveal_all(pattern: tuple[int, ...], source: Array) -> list[Any]:
    """The only move of a call that reveals everything."""
    del source
    return [(pattern, (), 1.0)]


def step_law(law: Array, probabilities: Array, moves: Any) -> tuple[Array, float]:
    """The law after one call that draws its tokens independently, and the probability that it is made.

    Args:
      law: `[states]`.
      probabilities: `[states, length, size]`.
      moves: `(pattern, source) -> [(revealed, masked again, chance)]`, everything that can happen.
    """
    _, length, size = probabilities.shape
    after, made = np.zeros_like(law), 0.0
    for pattern, source in states_by_pattern(size, length):
        if not law[source].any():
            continue
        for places, again, chance in moves(pattern, source):
            weight = law[source] * chance
            made += float(weight.sum()) if places else 0.0
            target, weight = revealed(source, places, probabilities, weight)
            masked = masked_again(source, again, size, length) - source
            # States that differ only where they are masked again become one state: their weights must add up.
            np.add.at(after, target + masked[:, None], weight)
    return after, made
