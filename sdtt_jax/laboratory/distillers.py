"""Every distiller on an enumerated world, by the same measures: KL both ways, total variation, entropy.

Texts are written in mode "grid", whose law `sample_distribution` sums up for a table of predictions; only the
students of `coupled-rounds` and `coupled-soft` write in the mode of their trajectories. A distiller is a row
of `DISTILLERS`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.distillation.coupled import CoupledDistillConfig
from sdtt_jax.laboratory import others
from sdtt_jax.laboratory.coupled import (
    CoupledStudentConfig,
    make_coupled_diffusion,
    train_coupled,
)
from sdtt_jax.laboratory.matched import matched_measures
from sdtt_jax.laboratory.record import Record, Truth
from sdtt_jax.laboratory.sampled import sampled_measures
from sdtt_jax.laboratory.world import Array
from sdtt_jax.ops.noise import FULL, MASKS
from sdtt_jax.typing import Params

# Each round divides the calls by this, from the least power of two that gives every token a call.
ROUNDS_OF = 2


class Asked(NamedTuple):
    """The measurements to make of the distillers."""

    truth: Truth  # the world, enumerated
    optima: Sequence[Array]  # predictions of SDTT's rounds, the last of which is measured
    calls: Sequence[int]  # numbers of network calls
    config: CoupledStudentConfig  # the coupled student and its training
    # What the other distillers' students share; needed for them alone.
    bench: others.StudentBench | None = None
    # The one of `matched.ENTROPIES` at which students are compared as well; None for none.
    matched: str | None = None
    # Trains the one-shot coupled student, once: the distillers that need it share it.
    one_shot: Callable[[], list[Params]] | None = None


class Distiller(NamedTuple):
    """A distiller of the laboratory."""

    # Returns the measures by number of calls, a string, for each name in the record.
    measure: Callable[[Asked], dict[str, Record]]
    trains: bool  # whether a trained student is measured, or else the optimum in closed form


def measure_distillers(names: Sequence[str], asked: Asked) -> Record:
    """The measures `{name: {calls: {"kl", "kl_reverse", "tv", "entropy"}}}`, calls as strings.

    A coupled student is measured twice: as `coupled`, which takes the tokens that its noise determines, and
    as `coupled-drawn`, which draws from its own distribution. With `asked.matched`, students whose law is
    exact are measured again at the chain's entropy, as `NAME-matched`.
    """
    one_shot = functools.partial(train_coupled, asked.truth.world, asked.config)
    asked = asked._replace(one_shot=functools.cache(one_shot))
    measured: Record = {}
    for name in names:
        measured |= DISTILLERS[name].measure(asked)
    return measured


def _sdtt(asked: Asked) -> dict[str, Record]:
    return _exactly(asked, "sdtt", {n: [asked.optima[-1]] for n in asked.calls})


def _coupled_rounds(asked: Asked, name: str, soft_weight: float) -> dict[str, Record]:
    """Trains as many steps in all as one-shot; each number of calls gets the student of its own round."""
    rounds = max((asked.truth.world.length - 1).bit_length(), 1)  # one for a single token, too
    steps = max(asked.config.num_steps // rounds, 1)
    config = CoupledDistillConfig(
        ROUNDS_OF**rounds,
        num_distill_calls=ROUNDS_OF,
        num_rounds=rounds,
        full_share=asked.config.full_share,
        soft_weight=soft_weight,
    )
    fewer = asked._replace(config=dataclasses.replace(asked.config, num_steps=steps))
    return _trained(fewer, name, config)


def _trained(
    asked: Asked, name: str = "coupled", distill: CoupledDistillConfig | None = None
) -> dict[str, Record]:
    truth, config = asked.truth, asked.config
    students = train_coupled(truth.world, config, distill) if distill else _one_shot(asked)
    diffusion = make_coupled_diffusion(truth.world, config)
    found: Record = {}
    for n in asked.calls:
        params, mode = students[-1], "grid"
        if distill is not None:
            # A student has seen only its own round's trajectories: take the first that is for n calls
            # or fewer, and their mode.
            rounds = range(1, distill.num_rounds + 1)
            fit = (students[r - 1] for r in rounds if distill.calls_of(r + 1) <= n)
            params, mode = next(fit), distill.mode
        _add_both_ways(found, asked, name, diffusion, params, [n], mode)
    return found


def _one_shot(asked: Asked) -> list[Params]:
    assert asked.one_shot is not None
    return asked.one_shot()


def _add_both_ways(
    found: Record,
    asked: Asked,
    name: str,
    diffusion: MaskedDiffusion,
    params: Params,
    calls: Sequence[int],
    mode: str = "grid",
) -> None:
    """Adds the measures of a student's argmax and of its draws."""
    for of, temperature in ((name, 0.0), (f"{name}-drawn", 1.0)):
        measures = sampled_measures(
            asked.truth, diffusion, params, calls, asked.config.draws, temperature, mode
        )
        found.setdefault(of, {}).update(measures)


def _coupled_idlm(asked: Asked) -> dict[str, Record]:
    assert asked.bench is not None
    student = make_coupled_diffusion(asked.truth.world, asked.config)
    [params] = _one_shot(asked)
    found: Record = {}
    params = others.coupled_idlm_params(asked.bench, student, params)
    _add_both_ways(found, asked, "coupled-idlm", student, params, asked.calls)
    return found


def _in_rounds(name: str, soft_weight: float) -> Distiller:
    measure = functools.partial(_coupled_rounds, name=name, soft_weight=soft_weight)
    return Distiller(measure, trains=True)


def _exactly(asked: Asked, name: str, students: others.Students) -> dict[str, Record]:
    found: Record = {}
    matched: Record = {}
    for n, tables in students.items():
        found[str(n)] = asked.truth.measures_of(others.law_of(tables, n))
        if asked.matched:
            matched |= matched_measures(asked.truth, tables, [n], asked.matched)
    return {name: found} | ({f"{name}-matched": matched} if matched else {})


def _other(name: str, students: Callable[[others.StudentBench], others.Students]) -> Distiller:
    def measures(asked: Asked) -> dict[str, Record]:
        assert asked.bench is not None
        return _exactly(asked, name, students(asked.bench))

    return Distiller(measures, trains=True)


def _masks(name: str, kind: str, *, coupled: bool) -> Distiller:
    def measures(asked: Asked) -> dict[str, Record]:
        assert asked.bench is not None
        return {name: others.masks_measures(asked.bench, kind, coupled=coupled)}

    return Distiller(measures, trains=True)


DISTILLERS = {
    "sdtt": Distiller(_sdtt, trains=False),
    "coupled": Distiller(_trained, trains=True),
    "coupled-rounds": _in_rounds("coupled-rounds", soft_weight=0.0),
    "coupled-soft": _in_rounds("coupled-soft", soft_weight=1.0),
    "coupled-idlm": Distiller(_coupled_idlm, trains=True),
    "alpha": _other("alpha", others.alpha_students),
    "mixture": _other("mixture", others.mixture_students),
    "mmd": _other("mmd", others.mmd_students),
    "idlm": _other("idlm", others.idlm_students),
    "masks": _masks("masks", MASKS, coupled=True),
    "masks-uncoupled": _masks("masks-uncoupled", MASKS, coupled=False),
    "infinite": _masks("infinite", FULL, coupled=True),
    "infinite-uncoupled": _masks("infinite-uncoupled", FULL, coupled=False),
}
