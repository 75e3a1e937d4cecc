"""The results for a world, as one record: the optimum of every round, and trained students.

The record is what `experiments.exact` writes to results.json and `sdtt_jax.reporting` draws.
Measures are those of `Truth.measures` by number of steps, which is a string, as in JSON.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdtt_jax.laboratory.optimum import (
    expected_divergence,
    mean_kl,
    mean_over_masked,
    round_optimum,
)
from sdtt_jax.laboratory.student import (
    StudentConfig,
    copy_teacher,
    make_diffusion,
    predictions,
    train_rounds,
)
from sdtt_jax.laboratory.world import (
    Array,
    World,
    finished_states,
    law_measures,
    reveal_sums,
    sample_distribution,
    state_probabilities,
    true_denoiser,
)

STEPS = tuple(range(1, 65))
TRAINED_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# A gain up to here, in nats per masked token, is the rounding of the sums that it is computed from.
ROUNDING = 1e-12

Record = dict[str, Any]
Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Truth:
    """A world and its exact quantities before any round."""

    world: World
    teacher: Array  # [states, L, V], what the true denoiser predicts
    evidence: Array  # [states], the probability of what a state shows
    probabilities: Array  # [states], how often masking produces it

    @classmethod
    def of(cls, world: World) -> "Truth":
        """Enumerates a world."""
        teacher, evidence = true_denoiser(world)
        return cls(world, teacher, evidence, state_probabilities(world, evidence))

    @functools.cached_property
    def chain(self) -> Array:
        """`[V^L]`, the probabilities of finished sequences in the language."""
        return self.evidence[finished_states(self.world)]

    def measures_of(self, law: Array) -> dict[str, float]:
        """`law_measures` of a law of finished sequences, against the language."""
        return law_measures(law, self.chain, self.world.length)

    def measures(self, predictions: Array, steps: Sequence[int] = STEPS) -> Record:
        """`measures_of` the samples by number of steps, without sampling.

        With them goes `perplexity`, the exponential of the samples' cross-entropy per token under the chain.
        The sampler draws from `predictions: [states, L, V]`. As many steps as a sequence has tokens are
        always among them.
        """
        sums, measures = reveal_sums(predictions), {}
        for num_steps in sorted({*steps, self.world.length}):
            law = sample_distribution(sums, num_steps)
            perplexity = math.exp(-float(law @ np.log(self.chain)) / self.world.length)
            measures[str(num_steps)] = {"perplexity": perplexity} | self.measures_of(law)
        return measures

    def mean_loss(self, student: Array, teacher: Array, dt: float, divergence: str) -> float:
        """The round's expected loss, nats per masked token."""
        losses = expected_divergence(student, teacher, dt, divergence)
        return mean_over_masked(losses, self.probabilities, self.world.vocab_size)


def closed_form(
    truth: Truth, divergences: Sequence[str], dts: Sequence[float], log: Log
) -> tuple[Record, dict[str, list[Array]]]:
    """Computes the optimum of every round.

    Divergences are names of `OPTIMA`, `dts` the step sizes of the rounds. `log` gets a line for each
    divergence.

    Returns:
      record: an entry of `record["rounds"][divergence]` holds the round's number and dt; `steps`, the
        measures; `teacher_divergence` and `floor`, the round's loss of its teacher and of its optimum; and
        `kl_from_teacher`, KL(optimum || teacher of the round), all per masked token.
      optima: their predictions [states, L, V] by divergence and round.
    """
    world = truth.world
    record: Record = {
        "world": {**dataclasses.asdict(world), "num_states": world.num_states},
        "data_entropy": truth.measures_of(truth.chain)["entropy"],
        "teacher": {"steps": truth.measures(truth.teacher)},
        "rounds": {},
    }
    optima: dict[str, list[Array]] = {}
    for divergence in divergences:
        began = time.monotonic()
        entries, optima[divergence] = [], []
        teacher = truth.teacher
        for number, dt in enumerate(dts, start=1):
            optimum = round_optimum(teacher, dt, divergence)
            entries.append(
                {
                    "round": number,
                    "dt": dt,
                    "steps": truth.measures(optimum),
                    "teacher_divergence": truth.mean_loss(teacher, teacher, dt, divergence),
                    "floor": truth.mean_loss(optimum, teacher, dt, divergence),
                    "kl_from_teacher": mean_kl(optimum, teacher, truth.probabilities),
                }
            )
            optima[divergence].append(optimum)
            teacher = optimum
        record["rounds"][divergence] = entries
        kls = (e["steps"][str(world.length)]["kl"] for e in (record["teacher"], *entries))
        log(
            f"{divergence}: KL(samples || language) in nats at {world.length} steps, teacher and "
            f"rounds: {' → '.join(f'{kl:.3f}' for kl in kls)} ({time.monotonic() - began:.1f} s)"
        )
    return record, optima


def train_students(
    truth: Truth, record: Record, optima: dict[str, list[Array]], config: StudentConfig, log: Log
) -> dict[str, list[Array]]:
    """Distills a transformer for each divergence and adds its measures to the record.

    Returns its predictions [states, L, V] by divergence and round. Each round gets `"trained"`: `steps`, the
    measures; `kl_to_optimum`, KL(optimum || student) per masked token; `relative`, that divided by KL(optimum
    || teacher of the round); `relative_to_first`, divided by KL(optimum || first teacher), both None where
    there is nothing to gain; `own_kl`, KL to the optimum for the student's actual teacher; `loss`,
    the last logged loss.

    `closed_form` returned record, which is changed, and optima; `log` gets a line for each round.
    """
    began = time.monotonic()
    students: dict[str, list[Array]] = {}
    kl = functools.partial(mean_kl, probabilities=truth.probabilities)
    world = truth.world
    start = copy_teacher(world, config)
    copy_kl = kl(truth.teacher, predictions(make_diffusion(world, config), start, world))
    record["training"] = {**dataclasses.asdict(config), "copy_kl": copy_kl}
    log(f"copy of the teacher: KL {copy_kl:.1e} nats per masked token")
    for divergence, best in optima.items():
        entries = record["rounds"][divergence]
        dts = tuple(entry["dt"] for entry in entries)
        exact_teacher = own_teacher = truth.teacher
        trained_rounds = train_rounds(world, config, start, dts, divergence)
        for entry, optimum, (student, loss) in zip(entries, best, trained_rounds, strict=True):
            distance, gain = kl(optimum, student), kl(optimum, exact_teacher)
            first_gain = kl(optimum, truth.teacher)
            entry["trained"] = {
                "steps": truth.measures(student, TRAINED_STEPS),
                "kl_to_optimum": distance,
                "relative": _share(distance, gain),
                "relative_to_first": _share(distance, first_gain),
                "own_kl": kl(round_optimum(own_teacher, entry["dt"], divergence), student),
                "loss": loss,
            }
            log(
                f"{divergence}, round {entry['round']}: KL(optimum || student) {distance:.1e} nats "
                f"per masked token; the optimum is {gain:.1e} from the round's teacher and "
                f"{first_gain:.1e} from the first"
            )
            exact_teacher, own_teacher = optimum, student
            students.setdefault(divergence, []).append(student)
    record["training"]["seconds"] = time.monotonic() - began
    return students


def _share(distance: float, gain: float) -> float | None:
    """`distance / gain`; None if the gain is only rounding, as where tokens are independent."""
    return distance / gain if gain > ROUNDING else None
