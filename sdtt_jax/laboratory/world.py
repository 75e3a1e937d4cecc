"""A language so small that masked diffusion on it can be computed exactly.

The language is a Markov chain over V tokens, cut into sequences of a fixed length L. A *state* is
a partly masked sequence; there are (V + 1)^L of them, numbered by reading their digits in base
V + 1 (first position = most significant digit, digit V = MASK). Everything here is NumPy float64:

* the teacher is the chain's true denoiser, p(x0 at a position | x_t), by forward and backward
  messages over all states at once;
* the sampler's distribution over finished sequences is an exact sum for any number of steps;
* `alpha_t = 1 - t` and t is uniform on (0, 1).

A table of predictions is an array `[states, L, V]`; at unmasked positions it is one-hot.
`optimum` computes what one round of distillation makes of such a table.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from sdtt_jax.config import each, from_mapping, require, whole, within
from sdtt_jax.formats import read_json
from sdtt_jax.paths import as_path

Array = NDArray[Any]

# Pairs of a state and a state that one reverse step can reach: there are (2 V + 1)^L. This many take
# seconds and a few hundred MiB; ten times more would be too slow and too large.
MAX_PAIRS = 50_000_000
SUM_TOLERANCE = 1e-6
DEFAULT_DTS = (1 / 48, 1 / 24, 1 / 12, 1 / 6, 1 / 3)

# What a world file may hold in addition to the fields of `World`: reference results.
_RESULTS = ("data_entropy", "teacher", "rounds", "probe_states", "teacher_probabilities", "kind")


@dataclasses.dataclass(frozen=True)
class World:
    """A Markov chain, the length of its sequences and the step sizes of the rounds.

    Raises:
      ConfigError: when a field breaks its rule below, or the world is too large to enumerate.
    """

    initial: tuple[float, ...]  # `[V]` probabilities of the first token, all positive
    # `[V, V]` probabilities of the next token (column) given this one (row), all positive: tokens that are
    # revealed together are drawn independently, so a forbidden pair would be sampled and KL(samples || chain)
    # would be infinite.
    transition: tuple[tuple[float, ...], ...]
    length: int  # L, tokens in a sequence
    # The step size of each round, in units of the diffusion time, each in (0, 1].
    dts: tuple[float, ...] = DEFAULT_DTS
    name: str = "world"  # what figures and messages call it

    def __post_init__(self) -> None:
        size, rows = len(self.initial), [len(row) for row in self.transition]
        require(size > 1, f"world.initial has {size} entries; a world needs at least 2 tokens.")
        whole(1, **{"world.length": self.length})
        require(
            rows == [size] * size,
            f"world.transition must be {size} rows of {size} numbers, like world.initial; "
            f"it has {len(rows)} rows of {sorted(set(rows))}",
        )
        _check_distribution(self.initial, "world.initial")
        for row, values in enumerate(self.transition):
            _check_distribution(values, f"world.transition, row {row},")
        require(bool(self.dts), "world.dts is empty; a world needs at least one step size.")
        each(within, "(0, 1]", **{"world.dts": self.dts})
        pairs = (2 * size + 1) ** self.length
        require(
            pairs <= MAX_PAIRS,
            f"The world is too large to enumerate: {size} tokens and length {self.length} are "
            f"{(size + 1) ** self.length:,} partly masked states and {pairs:,} steps between "
            f"them (at most {MAX_PAIRS:,}). Take a smaller vocabulary or length.",
        )

    @property
    def vocab_size(self) -> int:
        """V, without MASK. MASK is token V."""
        return len(self.initial)

    @property
    def num_states(self) -> int:
        """(V + 1)^L."""
        return (self.vocab_size + 1) ** self.length


def sticky_world() -> World:
    """The built-in world: 4 tokens, each followed by itself with probability 0.925; length 6."""
    stay, move = 0.925, 0.025
    rows = tuple(tuple(stay if i == j else move for j in range(4)) for i in range(4))
    return World((0.25,) * 4, rows, 6, DEFAULT_DTS, name="sticky")


def world_from_mapping(mapping: Mapping[str, Any], where: str = "world") -> World:
    """Makes a world from the fields of a world file; errors name the field and `where` it is.

    The fields are `initial`, `transition`, `length`, and optionally `dts`, `name`, `alpha` (only "1 - t") and
    `num_distill_steps` (only 2). The file may also hold reference results.
    """
    require(isinstance(mapping, Mapping), f"{where}: a world is a JSON object, not {mapping!r}.")
    for name in ("initial", "transition", "length"):
        require(name in mapping, f"{where}: the field {name!r} is missing.")
    fields = {name: value for name, value in mapping.items() if name not in _RESULTS}
    alpha, steps = fields.pop("alpha", "1 - t"), fields.pop("num_distill_steps", 2)
    one_minus_t = str(alpha).replace(" ", "") == "1-t"
    require(one_minus_t, f"{where}: alpha is {alpha!r}; only '1 - t' is computed here.")
    closed_form = f"{where}: num_distill_steps is {steps!r}; the closed form exists only for 2."
    require(steps == 2, closed_form)
    return from_mapping(World, fields, where)


def load_world(path: str | Path) -> World:
    """Reads a world file (JSON); the world is named after the file unless the file gives a name."""
    return world_from_mapping({"name": as_path(path).stem, **read_json(path)}, str(path))


def all_states(vocab_size: int, length: int) -> Array:
    """Every partly masked sequence in the order of its number: [(V + 1)^L, L] int64."""
    numbers = np.arange((vocab_size + 1) ** length)
    return numbers[:, None] // strides(vocab_size, length) % (vocab_size + 1)


def strides(vocab_size: int, length: int) -> Array:
    """Place value of each position in the number of a state: [L] int64."""
    return np.asarray((vocab_size + 1) ** np.arange(length - 1, -1, -1), dtype=np.int64)


def states_by_pattern(vocab_size: int, length: int) -> Iterator[tuple[tuple[int, ...], Array]]:
    """The masked positions of every mask pattern, most masked first, with `states_with_pattern`."""
    for count in range(length, -1, -1):
        for masked in itertools.combinations(range(length), count):
            yield masked, states_with_pattern(masked, vocab_size, length)


def states_with_pattern(masked: tuple[int, ...], vocab_size: int, length: int) -> Array:
    """Numbers of the states in which exactly the positions `masked` are MASK: [V^(L-m)] int64."""
    step = strides(vocab_size, length)
    choices = [
        np.array([vocab_size]) if position in masked else np.arange(vocab_size)
        for position in range(length)
    ]
    return outer_sum([choice * step[i] for i, choice in enumerate(choices)])


def outer_sum(parts: Iterable[Array]) -> Array:
    """All sums of one entry from each part, the last part's entries varying fastest."""
    return functools.reduce(np.add.outer, parts, np.zeros(1, np.int64)).reshape(-1)


def revealed(
    states: Array, positions: Sequence[int], probabilities: Array, weight: Array
) -> tuple[Array, Array]:
    """The states that revealing `positions`, m of them, can lead to, and their weights: two `[n, V^m]`.

    Args:
      states: `[n]` numbers of states in which all of `positions` are masked.
      positions: what is revealed.
      probabilities: `[states, L, V]`, what tokens are drawn from.
      weight: `[n]`, the weights of `states`.
    """
    _, length, size = probabilities.shape
    step, weight = strides(size, length), weight[:, None]
    for position in positions:
        drawn = probabilities[states, position]
        weight = (weight[:, :, None] * drawn[:, None, :]).reshape(len(states), -1)
    shift = outer_sum([(np.arange(size) - size) * step[p] for p in positions])
    return states[:, None] + shift, weight


def masked_again(states: Array, positions: Sequence[int], size: int, length: int) -> Array:
    """Numbers of `states`, of any shape, once `positions` are masked."""
    step = strides(size, length)[list(positions)]
    shown = states[..., None] // step % (size + 1)
    return np.asarray(states + ((size - shown) * step).sum(axis=-1))


def true_denoiser(world: World) -> tuple[Array, Array]:
    """The chain's own predictions, and the probability of what each state shows.

    Returns:
      `(probabilities, evidence)`: [states, L, V], p(x0 at a position | the unmasked tokens), and
      [states], the probability of the unmasked tokens under the chain.
    """
    size, length = world.vocab_size, world.length
    states = all_states(size, length)
    transition = np.asarray(world.transition)
    # emission[n, i, v]: 1 where token v agrees with what state n shows at position i
    emission = (states[:, :, None] == np.arange(size)) | (states[:, :, None] == size)
    forward = np.empty(emission.shape)
    forward[:, 0] = np.asarray(world.initial) * emission[:, 0]
    for i in range(1, length):
        forward[:, i] = (forward[:, i - 1] @ transition) * emission[:, i]
    backward = np.ones((len(states), size))
    for i in range(length - 2, -1, -1):
        backward = (backward * emission[:, i + 1]) @ transition.T
        forward[:, i] *= backward
    evidence = forward[:, -1].sum(axis=-1)
    return forward / evidence[:, None, None], evidence


def state_probabilities(world: World, evidence: Array) -> Array:
    """How often masking a sequence of the chain at a uniform t gives each state: [states].

    The integral of t^m (1 - t)^(L - m) over (0, 1) times the evidence; sums to one.
    """
    masked = (all_states(world.vocab_size, world.length) == world.vocab_size).sum(axis=1)
    return np.asarray(special.beta(masked + 1, world.length - masked + 1) * evidence)


def finished_states(world: World) -> Array:
    """Numbers of the states without MASK, in order: [V^L] int64."""
    return states_with_pattern((), world.vocab_size, world.length)


def reveal_sums(probabilities: Array) -> Array:
    """The sampler's law, summed over everything but the number of steps that reveal something.

    It draws from `probabilities: [states, L, V]`. For each s, the sum over all ways to reveal a sequence in
    exactly s groups of positions, one group after the other, of the product of the predictions that its
    tokens are drawn from. Each position is independently revealed at a step that is uniform over the n steps
    of the grid, so each such way has probability C(n, s) / n^L, whatever the groups: one pass serves every n.

    Returns:
      [L + 1, V^L], finished sequences in the order of their numbers; row 0 is zero.
    """
    _, length, size = probabilities.shape
    sums = np.zeros((length + 1, len(probabilities)))
    sums[0, -1] = 1.0  # the last state is the fully masked one
    for masked, source in states_by_pattern(size, length):
        for count in range(1, len(masked) + 1):
            for group in itertools.combinations(masked, count):
                target, weight = revealed(source, group, probabilities, np.ones(len(source)))
                # Each target is reached once, so += is safe.
                sums[1:, target] += sums[:-1, source, None] * weight
    return np.asarray(sums[:, states_with_pattern((), size, length)])


def sample_distribution(sums: Array, num_steps: int) -> Array:
    """Probability of every finished sequence under `num_steps` reverse steps: [V^L].

    The grid is uniform in t, from 1 to 0, so a position still masked at step j = 0 … n - 1 is
    revealed there with probability 1 / (n - j).
    """
    return np.asarray(reveal_ways(num_steps, len(sums) - 1) @ sums)


def reveal_ways(num_steps: int, length: int) -> Array:
    """The probability of each way to reveal L positions in s groups one after the other: `[L + 1]`.

    Each position is revealed at one of n steps, uniformly, so this is C(n, s) / n^L.
    """
    return np.array([math.comb(num_steps, s) / num_steps**length for s in range(length + 1)])


def law_measures(law: Array, chain: Array, length: int) -> dict[str, float]:
    """How far a law of finished sequences is from the chain's, both `[V^L]`, ordered as `finished_states`.

    Returns:
      `kl`, KL(law || chain), and `kl_reverse`, KL(chain || law), in nats, and `tv`, their total variation,
      all of whole sequences; `entropy` of the law, nats per token.
    """
    return {
        "kl": float(special.rel_entr(law, chain).sum()),
        "kl_reverse": float(special.rel_entr(chain, law).sum()),
        "tv": float(np.abs(law - chain).sum() / 2),
        "entropy": float(special.entr(law).sum()) / length,
    }


def _check_distribution(values: tuple[float, ...], name: str) -> None:
    positive = all(math.isfinite(value) and value > 0 for value in values)
    require(positive, f"{name} has entries that are not positive: {list(values)}.")
    right = abs(sum(values) - 1) <= SUM_TOLERANCE
    require(right, f"{name} sums to {sum(values):.6g}; probabilities must sum to 1.")
