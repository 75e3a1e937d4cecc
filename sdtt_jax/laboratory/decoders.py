"""The exact law of every decoder in an enumerated world: a sum over all that can happen at each call.

`world.reveal_sums` has the law of the grid for every number of steps at once, because there every order of
positions is equally likely. Here the probability of each partly masked sequence is carried from call to
call, so that a decoder may look at what the network says, or mask tokens again.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import require
from sdtt_jax.diffusion.decoders import parse_mode, stop_of
from sdtt_jax.diffusion.decoders.base import Decoder, Pick
from sdtt_jax.diffusion.decoders.blocks import Blocks
from sdtt_jax.diffusion.decoders.doubting import DoubtingRemdm
from sdtt_jax.diffusion.decoders.learnt import Learnt
from sdtt_jax.diffusion.decoders.planned import Grid
from sdtt_jax.diffusion.decoders.refine import Refine
from sdtt_jax.diffusion.decoders.staged import Staged
from sdtt_jax.errors import ConfigError
from sdtt_jax.laboratory.decoder_steps import STEPS, Table, alike, even_count, step_law
from sdtt_jax.laboratory.matched import tempered
from sdtt_jax.laboratory.noisy_orders import Move, noisy_picks
from sdtt_jax.laboratory.record import Truth
from sdtt_jax.laboratory.world import (
    Array,
    all_states,
    states_with_pattern,
)

# Scores of positions that are alike by the world's symmetry differ in the last bits of float32; rounded they
# are equal, and the first position comes first.
_DIGITS = 5


def decoder_law(
    probabilities: Array,
    mode: str,
    num_steps: int,
    helper: Array | None = None,
    *,
    causal: bool = False,
) -> tuple[Array, float]:
    """The law of the texts that a decoder writes, `[V^L]`, and the mean number of its network calls for one.

    It is in the order of `finished_states`. Times are those of the uniform grid from 1 to 0, alpha = 1 - t.
    What the last step leaves masked is filled with the most probable tokens in one more call, as
    `sampler.take_step` does.

    Args:
      probabilities: `[states, L, V]`, what the sampler draws from, in the order of `all_states`.
      mode: of `SamplerConfig`.
      num_steps: calls that it may make; a decoder that makes several at a time makes so many times more.
      helper: `[states, L, V]` of the second model of a decoder that needs one; None: the same.
      causal: whether the helper is a causal model, of which only what has nothing masked on the left is read.
    """
    decoder, options = enumerable(mode)
    _, length, size = probabilities.shape
    law = np.zeros(len(probabilities))
    law[-1], calls = 1.0, 0.0  # the last state is the fully masked one
    if decoder.check is not None:
        decoder.check(options, None, num_steps, length)
    table = Table(probabilities, probabilities if helper is None else helper, causal, num_steps)
    picks = None
    if decoder.pick is not None:
        score = _scores(decoder.pick, options, probabilities)
        picks = functools.partial(_picks, decoder.pick, options, score, size)
    for index in range(num_steps):
        drafts = num_steps - options.rounds if isinstance(options, Refine) else 0
        if type(options) in STEPS and index >= drafts:
            law, made = STEPS[type(options)](options, table._replace(call=index), law)
            calls += made
            continue
        if picks is not None:
            moves = picks(num_steps - index)
        else:
            moves = functools.partial(
                _by_chance, decoder, options, length, index, drafts or num_steps
            )
        drawn = table.own
        if isinstance(options, Learnt) and options.scales:
            drawn = tempered(drawn, options.scale(index))
        if isinstance(options, Staged) and options.whose(index, num_steps):
            drawn = table.helper
        law, made = step_law(law, drawn, moves, length, size)
        calls += made
    masked = (all_states(size, length) == size).any(axis=1)
    calls += float(law[masked].sum())
    best = np.eye(size)[probabilities.argmax(axis=-1)]
    law, _ = step_law(law, best, lambda pattern, _: [(pattern, (), 1.0)], length, size)
    return law[states_with_pattern((), size, length)], calls


def enumerable(mode: str) -> tuple[Decoder, Any]:
    """`parse_mode`, of decoders whose law is computed here; `ConfigError` for any other."""
    decoder, options = parse_mode(mode)
    require(stop_of(mode) is None, f"mode={mode}: the law is that of all steps; leave `stop` out.")
    remembers = isinstance(options, DoubtingRemdm)
    require(not remembers, f"mode={mode}: the law depends on every history; it is not summed.")
    cached = isinstance(options, Blocks) and options.cache != "none"
    require(not cached, f"mode={mode}: a cache has no law of its own; add cache=none.")
    return decoder, options


def decoder_measures(
    truth: Truth, modes: Iterable[str], steps: Iterable[int], model: Array | None = None
) -> dict[str, dict[str, dict[str, float | None]]]:
    """`law_measures` of each decoder at each number of steps, with its mean number of "calls".

    A measure is None where it is infinite: the decoder never writes something that the chain does. Numbers of
    steps that a decoder cannot make are left out.

    Args:
      truth: the world; its true denoiser is the second model of decoders that need one.
      modes: of `SamplerConfig`.
      steps: calls that may be made.
      model: `[states, L, V]`, what the decoders draw from; None: from the true denoiser too.
    """
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    own = truth.teacher if model is None else model
    for mode, num_steps in itertools.product(modes, steps):
        try:
            law, calls = decoder_law(own, mode, num_steps, truth.teacher)
        except ConfigError:
            continue
        measures = truth.measures_of(law)
        finite = {name: value if math.isfinite(value) else None for name, value in measures.items()}
        found.setdefault(mode, {})[str(num_steps)] = finite | {"calls": calls}
    return found


def _scores(pick: Pick, options: Any, probabilities: Array) -> jax.Array:
    """How a decoder rates each position of each state, by its own function: `[states, L]` float32."""
    _, _, size = probabilities.shape
    log_probs = jnp.log(jnp.maximum(probabilities.reshape(-1, size), 1e-30))
    score = np.asarray(pick.score(options, log_probs), np.float64).reshape(probabilities.shape[:2])
    return jnp.asarray(score.round(_DIGITS), jnp.float32)


def _picks(
    pick: Pick, options: Any, score: jax.Array, size: int, calls_left: int
) -> Callable[[tuple[int, ...], Array], Iterator[Move]]:
    """What a call reveals of each state, by the decoder's own functions."""
    if options.order_temperature > 0:
        return functools.partial(noisy_picks, options, np.asarray(score), calls_left)
    due = jnp.asarray(all_states(size, score.shape[1]) == size)
    key = jax.random.key(0)  # read by none without a temperature of the order
    taken = np.asarray(pick.accept(options, key, score, due, calls_left))

    def moves(pattern: tuple[int, ...], source: Array) -> Iterator[Move]:
        del pattern
        for chosen in np.unique(taken[source], axis=0):
            places = tuple(int(place) for place in np.flatnonzero(chosen))
            yield places, (), (taken[source] == chosen).all(axis=1)

    return moves


def _by_chance(
    decoder: Decoder,
    options: Any,
    length: int,
    index: int,
    num_steps: int,
    pattern: tuple[int, ...],
    source: Array,
) -> Iterator[Move]:
    """All that a call can do that does not ask the network what, where `pattern` is masked.

    (Seven arguments: the first five are one decoder at one call.)
    """
    if decoder.redo is not None:
        masked = (jnp.float32(1 - step / num_steps) for step in (index, index + 1))
        reveal, remask = (float(chance) for chance in decoder.redo(options, *masked))
        shown = tuple(sorted(set(range(length)) - set(pattern)))
        for places, again in itertools.product(_subsets(pattern), _subsets(shown)):
            chance = _chance(reveal, places, pattern) * _chance(remask, again, shown)
            if chance > 0:
                yield places, again, chance
    elif isinstance(options, Grid):
        for places in _subsets(pattern):
            yield places, (), _chance(1 / (num_steps - index), places, pattern)
    elif isinstance(options, Blocks):
        each = num_steps // (length // options.length)
        block = [p for p in pattern if p // options.length == index // each]
        yield from alike(even_count(options.length, each, index % each), block, source)
    elif isinstance(options, Learnt):
        yield from alike(options.tokens[index], pattern, source)
    else:
        yield from alike(even_count(length, num_steps, index), pattern, source)


def _subsets(positions: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for count in range(len(positions) + 1):
        yield from itertools.combinations(positions, count)


def _chance(each: float, chosen: tuple[int, ...], positions: tuple[int, ...]) -> float:
    """That exactly these of some positions are chosen, each alike and on its own."""
    return float(each ** len(chosen) * (1 - each) ** (len(positions) - len(chosen)))
