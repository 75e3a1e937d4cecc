"""Every distiller on an enumerated world, by the same measures: KL both ways, total variation, entropy.

Texts are written in mode "grid", whose law `sample_distribution` sums up for a table of predictions; only the
students of `coupled-rounds` and `coupled-soft` write in the mode of their trajectories. A distiller is a row
of `DISTILLERS`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

from sdtt_jax.distillation.coupled import CoupledDistillConfig
from sdtt_jax.laboratory import others
from sdtt_jax.laboratory.coupled import train_coupled
from sdtt_jax.laboratory.matched import matched_measures
from sdtt_jax.laboratory.record import Record
from sdtt_jax.laboratory.sampled import sampled_measures
from sdtt_jax.laboratory.student import make_diffusion
from sdtt_jax.laboratory.world import Array
from sdtt_jax.ops.noise import FULL, MASKS
from sdtt_jax.typing import Params

# Each round divides the calls by this, from the least power of two that gives every token a call.
ROUNDS_OF = 2
# The distiller of which no student is trained: the optimum in closed form is measured.
UNTRAINED = "sdtt"


def measure_distillers(names: Sequence[str], bench: others.StudentBench) -> Record:
    """The measures `{name: {calls: {"kl", "kl_reverse", "tv", "entropy"}}}`, calls as strings.

    A coupled student is measured twice: as `coupled`, which takes the tokens that its noise determines, and
    as `coupled-drawn`, which draws from its own distribution. With `bench.matched`, students whose law is
    exact are measured again at the chain's entropy, as `NAME-matched`.
    """
    measured: Record = {}
    for name in names:
        measured |= DISTILLERS[name](bench, name)
    return measured


def _exactly(
    tables_at: Callable[[others.StudentBench, int], Sequence[Array]],
    bench: others.StudentBench,
    name: str,
) -> dict[str, Record]:
    """The measures of students that are tables of predictions, which `tables_at` makes for so many calls."""
    found: Record = {}
    matched: Record = {}
    for n in bench.calls:
        tables = tables_at(bench, n)
        found[str(n)] = bench.truth.measures_of(others.law_of(tables, n))
        if bench.matched:
            matched |= matched_measures(bench.truth, tables, [n], bench.matched)
    return {name: found} | ({f"{name}-matched": matched} if matched else {})


def _trained(
    params_at: Callable[[others.StudentBench, int], Params], bench: others.StudentBench, name: str
) -> dict[str, Record]:
    """The measures of students without noise, one trained for each number of calls."""
    return _exactly(
        lambda _, n: others.tables_of(bench, bench.plain, params_at(bench, n)), bench, name
    )


def _both_ways(
    bench: others.StudentBench, name: str, params: Params, calls: Sequence[int], mode: str = "grid"
) -> dict[str, Record]:
    """The measures of a coupled student's argmax and of its draws."""
    student = make_diffusion(bench.truth.world, bench.coupled, bench.coupled.noise)
    draws = bench.coupled.draws
    return {
        of: sampled_measures(bench.truth, student, params, calls, draws, temperature, mode)
        for of, temperature in ((name, 0.0), (f"{name}-drawn", 1.0))
    }


def _in_rounds(soft_weight: float, bench: others.StudentBench, name: str) -> dict[str, Record]:
    """Trains as many steps in all as one-shot; each number of calls gets the student of its own round."""
    world, one_shot = bench.truth.world, bench.coupled
    rounds = max((world.length - 1).bit_length(), 1)  # one for a single token, too
    distill = CoupledDistillConfig(
        ROUNDS_OF**rounds,
        num_distill_calls=ROUNDS_OF,
        num_rounds=rounds,
        full_share=one_shot.full_share,
        soft_weight=soft_weight,
    )
    config = dataclasses.replace(one_shot, num_steps=max(one_shot.num_steps // rounds, 1))
    students = train_coupled(world, config, distill)
    found: Record = {}
    for n in bench.calls:
        # A student has seen only its own round's trajectories: take the first that is for n calls or fewer,
        # and their mode.
        fit = (s for r, s in enumerate(students, start=2) if distill.calls_of(r) <= n)
        for of, measures in _both_ways(bench, name, next(fit), [n], distill.mode).items():
            found.setdefault(of, {}).update(measures)
    return found


# `(bench, name)`: the measures by number of calls, a string, for each name in the record.
DISTILLERS: dict[str, Callable[[others.StudentBench, str], dict[str, Record]]] = {
    UNTRAINED: partial(_exactly, lambda bench, _: [bench.optima[-1]]),
    "coupled": lambda bench, name: _both_ways(bench, name, bench.one_shot, bench.calls),
    "coupled-rounds": partial(_in_rounds, 0.0),
    "coupled-soft": partial(_in_rounds, 1.0),
    "coupled-idlm": lambda bench, name: _both_ways(
        bench, name, others.coupled_idlm_params(bench), bench.calls
    ),
    "alpha": partial(_trained, others.alpha_params),
    "mixture": partial(_exactly, lambda bench, _: bench.mixture),
    "mmd": partial(_trained, others.mmd_params),
    "idlm": partial(_trained, others.idlm_params),
    "masks": partial(others.masks_measures, MASKS, True),
    "masks-uncoupled": partial(others.masks_measures, MASKS, False),
    "infinite": partial(others.masks_measures, FULL, True),
    "infinite-uncoupled": partial(others.masks_measures, FULL, False),
}
