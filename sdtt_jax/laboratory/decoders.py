"""The exact law of every decoder in an enumerated world: a sum over all that can happen at each call.

`world.reveal_sums` gives the law of mode "grid" for every number of steps at once, because there every order
of positions is equally likely. Here the probability of each partly masked sequence is carried from call to
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
from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.diffusion.decoders.blocks import RANDOM, Blocks
from sdtt_jax.diffusion.decoders.confident import confidence, negative_entropy
from sdtt_jax.diffusion.decoders.energy import Energy
from sdtt_jax.diffusion.decoders.learnt import Learnt
from sdtt_jax.diffusion.decoders.refine import Refine
from sdtt_jax.diffusion.decoders.remasking import Remdm, remask_chances
from sdtt_jax.diffusion.decoders.staged import Staged
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.keys import purpose_key
from sdtt_jax.laboratory.decoder_steps import (
    StepTable,
    energy_step,
    even_count,
    refine_step,
    reveal_all,
    skeleton_step,
    speculative_step,
    step_law,
    uniform_moves,
)
from sdtt_jax.laboratory.matched import at_temperature
from sdtt_jax.laboratory.orders import Move, ordered_picks
from sdtt_jax.laboratory.record import Truth
from sdtt_jax.laboratory.sampled import Draws, mean_calls, sampled_measures
from sdtt_jax.laboratory.student import StudentConfig, make_diffusion, table_params
from sdtt_jax.laboratory.world import Array, all_states, states_with_pattern

Score = Callable[..., jax.Array]  # `Pick.score` of a decoder


def decoder_law(
    probabilities: Array,
    mode: str,
    num_steps: int,
    helper: Array | None = None,
    *,
    causal: bool = False,
) -> tuple[Array, float]:
    """The law of the texts that a decoder writes, `[V^L]`, and its mean number of network calls per text.

    The law is in the order of `finished_states`. Times are those of the uniform grid from 1 to 0, with
    alpha = 1 - t. Positions that the last step leaves masked get their most probable tokens in one more call,
    as in `sampler.take_step`.

    Args:
      probabilities: `[states, L, V]`, what the sampler draws from, in the order of `all_states`.
      mode: the decoder, as in `SamplerConfig`.
      num_steps: calls that it may make; a decoder that makes several per step makes that many times more.
      helper: `[states, L, V]`, what the second model says, if the decoder needs one; None: `probabilities`.
      causal: whether the helper is a causal model; a decoder other than "skeleton" then reads only
        predictions with nothing masked on their left.
    """
    check_measurable(mode)
    _, name, decoder, options, _ = parse_mode(mode)
    require(
        name in LAWS, f"mode={mode}: the law depends on every history and cannot be summed here."
    )
    _, length, size = probabilities.shape
    law = np.zeros(len(probabilities))
    law[-1], calls = 1.0, 0.0  # the last state is the fully masked one
    decoder.check(options, None, num_steps, length)
    table = StepTable(probabilities, probabilities if helper is None else helper, causal, num_steps)
    for index in range(num_steps):
        law, made = LAWS[name](options, table._replace(call=index), law)
        calls += made
    masked = (all_states(size, length) == size).any(axis=1)
    calls += float(law[masked].sum())
    best = np.eye(size)[probabilities.argmax(axis=-1)]
    law, _ = step_law(law, best, reveal_all)
    return law[states_with_pattern((), size, length)], calls


def check_measurable(mode: str) -> None:
    """Raises `ConfigError` for a decoder that has no law here."""
    parsed = parse_mode(mode)
    options = parsed.options
    require(
        parsed.stop is None, f"mode={mode}: the law is computed for all steps; leave `stop` out."
    )
    cached = isinstance(options, Blocks) and options.cache != "none"
    require(not cached, f"mode={mode}: a cache has no law of its own; add cache=none.")
    candidates = options.candidates if isinstance(options, Energy) else 1
    require(
        candidates <= 2,
        f"mode={mode}: the law is computed for at most two candidates; add candidates=2.",
    )


def decoder_measures(
    truth: Truth, modes: Iterable[str], steps: Iterable[int], model: Array | None = None
) -> dict[str, dict[str, dict[str, float | None]]]:
    """`law_measures` of each decoder at each number of steps, with its mean number of "calls".

    A law that depends on every history, as that of remdm-confidence does, is counted over samples. A measure
    is None where it is infinite because the decoder never writes something that the chain does. Numbers of
    steps that a decoder cannot make are left out (`Decoder.check`).

    Args:
      truth: the world; its true denoiser is the second model of decoders that need one.
      modes: the decoders, as in `SamplerConfig`.
      steps: numbers of calls that may be made.
      model: `[states, L, V]`, what the decoders draw from; None: the true denoiser's predictions.
    """
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    own, modes = truth.teacher if model is None else model, tuple(modes)
    for mode in modes:
        check_measurable(mode)
    for mode, num_steps in itertools.product(modes, steps):
        parsed = parse_mode(mode)
        try:
            parsed.decoder.check(parsed.options, None, num_steps, truth.world.length)
        except ConfigError:
            continue
        measures, calls = _measures(truth, own, mode, num_steps)
        finite = {name: value if math.isfinite(value) else None for name, value in measures.items()}
        found.setdefault(mode, {})[str(num_steps)] = finite | {"calls": calls}
    return found


def _measures(
    truth: Truth, own: Array, mode: str, num_steps: int
) -> tuple[dict[str, float], float]:
    if parse_mode(mode).name in LAWS:
        law, calls = decoder_law(own, mode, num_steps, truth.teacher)
        return truth.measures_of(law), calls
    model = make_diffusion(truth.world, StudentConfig()), table_params(own)
    draws = Draws()
    counted = sampled_measures(truth, *model, [num_steps], draws, temperature=1.0, mode=mode)
    config = SamplerConfig(num_steps, mode=mode)
    key = purpose_key(draws.seed, "exact-decoder-calls")
    calls = float(mean_calls(*model, key, config, truth.world.length))
    return counted[str(num_steps)], calls


def _remdm(options: Remdm, table: StepTable, law: Array) -> tuple[Array, float]:
    masked = (jnp.float32(1 - step / table.num_steps) for step in (table.call, table.call + 1))
    return _each_alone(table, law, *map(float, remask_chances(options, *masked)))


def _each_alone(
    table: StepTable, law: Array, reveal: float, remask: float = 0.0
) -> tuple[Array, float]:
    """Each position is revealed, or masked again, by a chance of its own, whatever the others do."""

    def moves(pattern: tuple[int, ...], _: Array) -> Iterator[Move]:
        shown = tuple(sorted(set(range(table.length)) - set(pattern)))
        for places, again in itertools.product(_subsets(pattern), _subsets(shown)):
            chance = _chance(reveal, places, pattern) * _chance(remask, again, shown)
            if chance > 0:
                yield places, again, chance

    return step_law(law, table.own, moves)


def _evenly(table: StepTable, law: Array, drawn: Array) -> tuple[Array, float]:
    """Positions in a random order, spread evenly over the calls."""
    count = even_count(table.length, table.num_steps, table.call)
    return step_law(law, drawn, functools.partial(uniform_moves, count))


def _learnt(options: Learnt, table: StepTable, law: Array) -> tuple[Array, float]:
    scale = options.scale(table.call) if options.scales else None
    drawn = table.own if scale is None else at_temperature(table.own, scale)
    return step_law(law, drawn, functools.partial(uniform_moves, options.tokens[table.call]))


def _staged(options: Staged, table: StepTable, law: Array) -> tuple[Array, float]:
    theirs = options.whose(table.call, table.num_steps)
    return _evenly(table, law, table.helper if theirs else table.own)


def _refine(options: Refine, table: StepTable, law: Array) -> tuple[Array, float]:
    drafts = table.num_steps - options.rounds
    if table.call < drafts:
        return _evenly(table._replace(num_steps=drafts), law, table.own)
    return refine_step(options, table, law)


def _surest(function: Score, options: Any, table: StepTable, law: Array) -> tuple[Array, float]:
    score = _scores(function, options, table.own)
    moves = functools.partial(ordered_picks, options, score, table.num_steps - table.call)
    return step_law(law, table.own, moves)


def _blocks(options: Blocks, table: StepTable, law: Array) -> tuple[Array, float]:
    each = table.num_steps // (table.length // options.length)
    block, call = divmod(table.call, each)
    picks: Callable[..., Iterable[Move]]
    if options.score == RANDOM:
        picks = functools.partial(uniform_moves, even_count(options.length, each, call))
    elif call == each - 1:
        picks = reveal_all
    else:
        picked = options.confidence()
        score = _scores(confidence, picked, table.own)
        picks = functools.partial(ordered_picks, picked, score, each - call)

    def moves(pattern: tuple[int, ...], source: Array) -> Iterable[Move]:
        return picks(tuple(p for p in pattern if p // options.length == block), source)

    return step_law(law, table.own, moves)


def _scores(function: Score, options: Any, probabilities: Array) -> Array:
    """A decoder's `Pick.score` of each position in each state: `[states, L]` float32."""
    log_probs = jnp.log(jnp.maximum(probabilities.reshape(-1, probabilities.shape[-1]), 1e-30))
    return np.asarray(function(options, log_probs)).reshape(probabilities.shape[:2])


def _subsets(positions: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for count in range(len(positions) + 1):
        yield from itertools.combinations(positions, count)


def _chance(each: float, chosen: tuple[int, ...], positions: tuple[int, ...]) -> float:
    """The chance that exactly these positions are chosen, each independently with chance `each`."""
    return float(each ** len(chosen) * (1 - each) ** (len(positions) - len(chosen)))


# By name, what a step of a decoder does to a law, as in `decoder_steps`; `StepTable.call` is its index.
# "remdm-confidence" has no such function, as its law depends on every history.
LAWS: dict[str, Callable[[Any, StepTable, Array], tuple[Array, float]]] = {
    "grid": lambda _, table, law: _each_alone(table, law, 1 / (table.num_steps - table.call)),
    "first-hitting": lambda _, table, law: _evenly(table, law, table.own),
    "learnt": _learnt,
    "confidence": functools.partial(_surest, confidence),
    "entropy-bounded": functools.partial(_surest, negative_entropy),
    "remdm": _remdm,
    "speculative": speculative_step,
    "blocks": _blocks,
    "refine": _refine,
    "staged": _staged,
    "skeleton": skeleton_step,
    "energy": energy_step,
}
