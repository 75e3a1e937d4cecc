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
from sdtt_jax.diffusion.decoders.base import Decoder
from sdtt_jax.diffusion.decoders.blocks import RANDOM, Blocks
from sdtt_jax.diffusion.decoders.confident import confidence
from sdtt_jax.diffusion.decoders.doubting import DoubtingRemdm
from sdtt_jax.diffusion.decoders.energy import Energy
from sdtt_jax.diffusion.decoders.learnt import Learnt
from sdtt_jax.diffusion.decoders.planned import Grid
from sdtt_jax.diffusion.decoders.refine import Refine
from sdtt_jax.diffusion.decoders.staged import Staged
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.keys import purpose_key
from sdtt_jax.laboratory.decoder_steps import (
    STEPS,
    StepTable,
    even_count,
    reveal_all,
    step_law,
    uniform_moves,
)
from sdtt_jax.laboratory.matched import at_temperature
from sdtt_jax.laboratory.orders import Move, ordered_picks
from sdtt_jax.laboratory.record import Truth
from sdtt_jax.laboratory.sampled import Draws, mean_calls, sampled_measures
from sdtt_jax.laboratory.student import StudentConfig, make_diffusion, table_params
from sdtt_jax.laboratory.world import (
    Array,
    all_states,
    states_with_pattern,
)


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
    parsed = parse_mode(mode)
    decoder, options = parsed.decoder, parsed.options
    require(
        not isinstance(options, DoubtingRemdm),
        f"mode={mode}: the law depends on every history and cannot be summed here.",
    )
    _, length, size = probabilities.shape
    law = np.zeros(len(probabilities))
    law[-1], calls = 1.0, 0.0  # the last state is the fully masked one
    if decoder.check is not None:
        decoder.check(options, None, num_steps, length)
    table = StepTable(probabilities, probabilities if helper is None else helper, causal, num_steps)
    score: Array | None
    if isinstance(options, Blocks) and options.score != RANDOM:
        score = _scores(confidence, options.confidence(), probabilities)
    else:
        score = (
            None if decoder.pick is None else _scores(decoder.pick.score, options, probabilities)
        )
    for index in range(num_steps):
        drafts = num_steps - options.rounds if isinstance(options, Refine) else 0
        if type(options) in STEPS and index >= drafts:
            law, made = STEPS[type(options)](options, table._replace(call=index), law)
            calls += made
            continue
        if score is not None and isinstance(options, Blocks):
            moves = functools.partial(_surest_of_block, options, score, index, num_steps)
        elif score is not None:
            moves = functools.partial(ordered_picks, options, score, num_steps - index)
        else:
            moves = functools.partial(
                _by_chance, decoder, options, length, index, drafts or num_steps
            )
        drawn = table.own
        if isinstance(options, Learnt) and options.scales:
            drawn = at_temperature(drawn, options.scale(index))
        if isinstance(options, Staged) and options.whose(index, num_steps):
            drawn = table.helper
        law, made = step_law(law, drawn, moves)
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

    Raises:
      ConfigError: a mode is none, or has no law here.
    """
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    own, modes = truth.teacher if model is None else model, tuple(modes)
    for mode in modes:
        check_measurable(mode)
    for mode, num_steps in itertools.product(modes, steps):
        if not _makes(mode, num_steps, truth.world.length):
            continue
        measures, calls = _measures(truth, own, mode, num_steps)
        finite = {name: value if math.isfinite(value) else None for name, value in measures.items()}
        found.setdefault(mode, {})[str(num_steps)] = finite | {"calls": calls}
    return found


def _makes(mode: str, num_steps: int, length: int) -> bool:
    """Whether a decoder can make so many steps in texts of this length."""
    parsed = parse_mode(mode)
    try:
        if parsed.decoder.check is not None:
            parsed.decoder.check(parsed.options, None, num_steps, length)
    except ConfigError:
        return False
    return True


def _measures(
    truth: Truth, own: Array, mode: str, num_steps: int
) -> tuple[dict[str, float], float]:
    if not isinstance(parse_mode(mode).options, DoubtingRemdm):
        law, calls = decoder_law(own, mode, num_steps, truth.teacher)
        return truth.measures_of(law), calls
    model = make_diffusion(truth.world, StudentConfig()), table_params(own)
    draws = Draws()
    counted = sampled_measures(truth, *model, [num_steps], draws, temperature=1.0, mode=mode)
    config, key = (
        SamplerConfig(num_steps, mode=mode),
        purpose_key(draws.seed, "exact-decoder-calls"),
    )
    calls = float(mean_calls(*model, key, config, truth.world.length))
    return counted[str(num_steps)], calls


def _scores(score: Callable[..., jax.Array], options: Any, probabilities: Array) -> Array:
    """A decoder's `Pick.score` of each position in each state: `[states, L]` float32."""
    _, _, size = probabilities.shape
    log_probs = jnp.log(jnp.maximum(probabilities.reshape(-1, size), 1e-30))
    return np.asarray(score(options, log_probs)).reshape(probabilities.shape[:2])


def _by_chance(
    decoder: Decoder,
    options: Any,
    length: int,
    index: int,
    num_steps: int,
    pattern: tuple[int, ...],
    source: Array,
) -> Iterator[Move]:
    """All that a call can do where `pattern` is masked, for a decoder that does not ask the network."""
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
        block, each, call = _of_block(options, length, index, num_steps, pattern)
        yield from uniform_moves(even_count(options.length, each, call), block, source)
    elif isinstance(options, Learnt):
        yield from uniform_moves(options.tokens[index], pattern, source)
    else:
        yield from uniform_moves(even_count(length, num_steps, index), pattern, source)


def _surest_of_block(
    options: Blocks,
    score: Array,
    index: int,
    num_steps: int,
    pattern: tuple[int, ...],
    source: Array,
) -> Iterator[Move]:
    """`ordered_picks` in the block that call `index` writes; a block's last call reveals what is left."""
    block, each, call = _of_block(options, score.shape[1], index, num_steps, pattern)
    if call == each - 1:
        yield block, (), 1.0
    else:
        yield from ordered_picks(options.confidence(), score, each - call, block, source)


def _of_block(
    options: Blocks, length: int, index: int, num_steps: int, pattern: tuple[int, ...]
) -> tuple[tuple[int, ...], int, int]:
    """The masked positions of the block that call `index` writes, its calls, and the call's number in it."""
    each = num_steps // (length // options.length)
    block = tuple(p for p in pattern if p // options.length == index // each)
    return block, each, index % each


def _subsets(positions: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for count in range(len(positions) + 1):
        yield from itertools.combinations(positions, count)


def _chance(each: float, chosen: tuple[int, ...], positions: tuple[int, ...]) -> float:
    """The chance that exactly these positions are chosen, each independently with chance `each`."""
    return float(each ** len(chosen) * (1 - each) ** (len(positions) - len(chosen)))
