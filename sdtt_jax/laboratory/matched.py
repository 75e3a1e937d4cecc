"""Samples that a temperature brings to the entropy of the language.

A student can lower KL(samples ‖ chain) by writing at lower entropy, as any model does at a temperature below
one. Students are therefore compared at the entropy of the language: every prediction is taken at the
temperature that makes the entropy of the samples the chain's. KL(samples ‖ chain) is then L log(perplexity of
the samples / perplexity of the chain): at equal entropy the perplexity alone says which law is nearer.

Two entropies can be made equal. *Joint* is that of the samples' law, for which the formula above holds.
*In-text* is the mean over texts of the entropy of the tokens within a text. It can be counted on real texts,
so the evaluation's suites match it; it does not see the order of tokens.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from sdtt_jax.config import choose
from sdtt_jax.laboratory.record import Record, Truth
from sdtt_jax.laboratory.world import (
    Array,
    all_states,
    finished_states,
    reveal_sums,
    sample_distribution,
)

JOINT, IN_TEXT = "joint", "in-text"
ENTROPIES = (JOINT, IN_TEXT)
# The grid that brackets the root before it is refined; 1 is on it. Below 1/16 the predictions in the worlds
# here all but name their most probable token; above 4 they are all but uniform.
_TEMPERATURES = np.geomspace(1 / 16, 4, 13)
_TOLERANCE = 1e-4  # relative, of a temperature
_ALIKE = 1e-9  # nats; entropies nearer than this are the same


def at_temperature(predictions: Array, temperature: float) -> Array:
    """Predictions at a temperature above 0: `p^(1/temperature)`, normalised, of `[states, L, V]`."""
    powers = predictions ** (1 / temperature)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def in_text_entropy(truth: Truth) -> Array:
    """Entropy of the tokens within each finished sequence, nats: `[V^L]`, ordered as `finished_states`."""
    world = truth.world
    tokens = all_states(world.vocab_size, world.length)[finished_states(world)]
    counts = (tokens[:, :, None] == np.arange(world.vocab_size)).sum(axis=1)
    return np.asarray(special.entr(counts / world.length).sum(axis=-1))


def matched_measures(
    truth: Truth, tables: Sequence[Array], calls: Sequence[int], entropy: str = JOINT
) -> Record:
    """`law_measures` of a student's samples at the temperature at which their entropy is the chain's.

    If there are several such temperatures, the one nearest to 1 is taken.

    Args:
      tables: the student's predictions `[states, L, V]`: one table, or one for each value of a mixture.
      calls: numbers of network calls.
      entropy: the one of `ENTROPIES` that is made equal.

    Returns:
      `{calls: {"kl", "kl_reverse", "tv", "entropy", "temperature", "reached"}}`. Where no temperature makes
      the entropies equal, `reached` is False, and the rest belongs to the one that comes nearest.
    """
    choose("entropy", entropy, ENTROPIES)
    length, of_text = truth.world.length, in_text_entropy(truth)

    def entropy_of(law: Array) -> float:
        return float(special.entr(law).sum() / length if entropy == JOINT else law @ of_text)

    @functools.cache  # one pass over the world serves all numbers of calls
    def sums(log_temperature: float) -> Array:
        each = (reveal_sums(at_temperature(table, math.exp(log_temperature))) for table in tables)
        return np.mean([*each], axis=0)

    from scipy import optimize  # imported when needed: as long as all else of a command

    found, grid, wanted = {}, [*map(float, np.log(_TEMPERATURES))], entropy_of(truth.chain)
    for n in calls:

        def excess(log_temperature: float, n: int = n) -> float:
            return entropy_of(sample_distribution(sums(log_temperature), n)) - wanted

        above = [excess(point) for point in grid]
        crossed = [i for i in range(len(grid) - 1) if above[i] * above[i + 1] <= 0]
        if crossed:
            i = min(crossed, key=lambda i: abs(grid[i] + grid[i + 1]))
            point = float(optimize.brentq(excess, grid[i], grid[i + 1], xtol=_TOLERANCE))
        else:
            i = min(range(len(grid)), key=lambda i: (abs(above[i]) // _ALIKE, abs(grid[i])))
            point = grid[i]
        law = sample_distribution(sums(point), n)
        found[str(n)] = truth.measures_of(law) | {
            "temperature": math.exp(point),
            "reached": bool(crossed),
        }
    return found
