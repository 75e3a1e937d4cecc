"""The sampler's exact law as a differentiable function of the predictions that it draws from.

`world.reveal_sums` is the same law in NumPy, for every number of steps at once. Here it is for one
number of calls, in JAX, arranged so that its gradient is cheap: states with equally many masks
form a group, all that a group can reveal is one outer product, and gathers carry each reveal to
its target, and each gradient back. A gradient in the built-in world takes 4 ms of one CPU core at
2 calls, 15 ms at 4.

A *table of logits* is a tuple of arrays `[N_m, m, V]`, one for each number m of masked positions,
largest first: the logits at the masked positions of each of the N_m states with m masks. One call
needs only the first array, that of the fully masked state.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.laboratory.world import Array, states_with_pattern, strides

StateTable = tuple[jax.Array, ...]
_SMALLEST = 1e-30  # the least probability in a table
_softmax = jax.jit(jax.nn.softmax)


class Reveals(NamedTuple):
    """Everything that each state of some groups can become in one call, as places in one long list."""

    order: Any  # places, sorted by the state that is reached
    inverse: Any  # [all places], their rank in `order`; one past its end for places left out


class Paths(NamedTuple):
    """The indices by which `sampler_law` gathers, from the fully masked state to finished sequences."""

    first: Any  # numbers of the states with 1 to L - 1 masks, in the order of the layout
    onward: Reveals  # from these states to each other
    finish: Reveals  # from all states with masks to finished sequences


class StateLayout(NamedTuple):
    """The states of a world by number of masks, L first, then by pattern, then by tokens."""

    states: tuple[Array, ...]  # [N_m] numbers of the states; the last are the finished ones
    positions: tuple[Array, ...]  # [N_m, m], the masked positions
    paths: Paths


def make_layout(vocab_size: int, length: int) -> StateLayout:
    """Arranges the states of worlds with V tokens and length L."""
    states, positions = [], []
    for masks in range(length, -1, -1):
        patterns = list(itertools.combinations(range(length), masks))
        own = [states_with_pattern(pattern, vocab_size, length) for pattern in patterns]
        states.append(np.concatenate(own))
        rows = np.array(patterns, np.int64).reshape(len(patterns), masks)
        positions.append(np.repeat(rows, len(own[0]), axis=0))
    order = np.concatenate(states)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    step = strides(vocab_size, length)

    def becomes(group: int, choices: int) -> Array:
        """Ranks of the states that each state of a group can become; choice V keeps MASK."""
        reached = states[group][:, None]
        for position in positions[group].T:
            shift = (np.arange(choices) - vocab_size) * step[position][:, None]
            reached = (reached[:, :, None] + shift[:, None, :]).reshape(len(reached), -1)
        return np.asarray(rank[reached])

    onward = [np.empty(0, np.int64)]
    for group in range(1, length):
        reached = becomes(group, vocab_size + 1)
        kept = (reached != rank[states[group]][:, None]) & (reached < rank[states[-1][0]])
        onward.append(np.where(kept, reached, len(rank)).reshape(-1))
    finish = [becomes(group, vocab_size).reshape(-1) for group in range(length)]
    between = order[1 : rank[states[-1][0]]].astype(np.int32)
    paths = Paths(between, _reveals(onward, len(rank)), _reveals(finish, len(rank)))
    return StateLayout(tuple(states), tuple(positions), paths)


def to_logits(layout: StateLayout, predictions: Array, calls: int) -> StateTable:
    """Predictions `[states, L, V]` as a table of logits, as far as a sampler with `calls` calls uses it."""
    groups = list(zip(layout.states, layout.positions, strict=True))[: 1 if calls == 1 else -1]
    return tuple(
        jnp.log(np.maximum(predictions[states[:, None], masked], _SMALLEST))
        for states, masked in groups
    )


def to_predictions(layout: StateLayout, logits: StateTable, otherwise: Array) -> Array:
    """The predictions, `[states, L, V]` float64, of a table of logits that `to_logits` made.

    States that the table leaves out keep the predictions of `otherwise`, of the same shape.
    """
    predictions = otherwise.copy()
    for states, masked, rows in zip(layout.states, layout.positions, logits, strict=False):
        own = np.asarray(_softmax(rows), np.float64)
        own = np.maximum(own, _SMALLEST)
        predictions[states[:, None], masked] = own / own.sum(axis=-1, keepdims=True)
    return predictions


def sampler_law(paths: Paths, log_probs: StateTable, ways: jax.Array) -> jax.Array:
    """Probability of every finished sequence: `[V^L]`, in the order of `finished_states`.

    Args:
      paths: those of the world's `StateLayout`.
      log_probs: a table of logits, normalised. (Without that, the sum over paths is not a distribution; its
        gradient says how much each prediction is used.)
      ways: `[S + 1]`, from `reveal_ways`; all arrays of `log_probs` are needed where S > 1.
    """
    log_full = log_probs[0]
    if len(ways) == 2:
        return ways[1] * _joint(log_full)[0]
    sizes = [len(rows) for rows in log_probs]
    edges = list(itertools.accumulate(sizes, initial=0))
    stay_too = [jnp.pad(rows, ((0, 0), (0, 0), (0, 1))) for rows in log_probs]

    def sent(reveals: Reveals, mass: jax.Array, rows: list[jax.Array], skip: int) -> jax.Array:
        groups = zip(rows[skip:], itertools.pairwise(edges[skip:]), strict=True)
        values = [(mass[a:b, None] * _joint(own)).reshape(-1) for own, (a, b) in groups]
        return _gathered(jnp.concatenate(values), *reveals)

    # level s: the probability of each state after s groups, the fully masked one left out
    level = jnp.pad(_joint(stay_too[0])[0, paths.first], (1, 0))
    mass = ways[2] * level
    for way in ways[3:]:
        arrived, at, sums = sent(paths.onward, level, stay_too, 1), 0, []
        for revealed, size in enumerate(sizes):
            sources = max(2**revealed - 2, 0)  # patterns between this one and the full one
            sums.append(arrived[at : at + size * sources].reshape(size, sources).sum(axis=1))
            at += size * sources
        level = jnp.concatenate(sums)
        mass += way * level
    finished = sent(paths.finish, mass.at[0].set(ways[1]), list(log_probs), 0)
    return finished.reshape(-1, 2 ** len(sizes) - 1).sum(axis=1)


def _joint(log_probs: jax.Array) -> jax.Array:
    """Probability of every choice at m positions together: `[N, m, V]` -> `[N, V^m]`."""
    total = log_probs[:, 0]
    for i in range(1, log_probs.shape[1]):
        total = (total[:, :, None] + log_probs[:, i, None, :]).reshape(len(total), -1)
    return jnp.exp(total)


@jax.custom_vjp
def _gathered(values: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """`values[order]`, each value taken at most once, so the gradient is a gather, not a slow scatter."""
    del inverse
    return values[order]


_gathered.defvjp(
    lambda values, order, inverse: (values[order], inverse),
    lambda inverse, gradient: (jnp.append(gradient, 0)[inverse], None, None),
)


def _reveals(targets: list[Array], count: int) -> Reveals:
    """Sorts reveals by target; those with target `count` are left out."""
    joined = np.concatenate(targets)
    order = np.argsort(joined, kind="stable")[: (joined < count).sum()]
    inverse = np.full(len(joined), len(order), np.int32)
    inverse[order] = np.arange(len(order))
    return Reveals(order.astype(np.int32), inverse)
