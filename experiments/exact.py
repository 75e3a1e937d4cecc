"""SDTT where everything can be computed: the exact optimum of each round, beside a trained student.

The language is a small Markov chain, the teacher its true denoiser. Without further flags, the
optimum of every round is computed in closed form for kl-bwd and kl-fwd, in seconds:

  python -m experiments.exact --output=runs/exact

With --train, a small transformer is also distilled, with the same masking, trajectories,
divergences and optimizer as on text, and compared with the optimum (a few minutes on 2 cores):

  python -m experiments.exact --train --output=runs/exact

Writes exact.json (all numbers), exact.svg and exact.png to --output. Another language is a JSON
file, --world=FILE, with "initial" [V], "transition" [V][V], "length", and optionally "dts", the
step size of each round.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.cli.app import run_app
from sdtt_jax.errors import ConfigError, DataError, UserError
from sdtt_jax.laboratory import optimum as exact_round
from sdtt_jax.laboratory import world as exact_world
from sdtt_jax.laboratory.student import Laboratory, StudentConfig
from sdtt_jax.laboratory.world import Array, World
from sdtt_jax.paths import write_json
from sdtt_jax.progress import make_progress
from sdtt_jax.reporting.picture import write_exact
from sdtt_jax.training.loop import Interrupted

STEPS = tuple(range(1, 65))
TRAINED_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
DEFAULT_DIVERGENCES = ("kl-bwd", "kl-fwd")
_DEFAULT = StudentConfig()


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is known about a world before any round."""

    world: World
    teacher: Array  # [states, L, V]
    evidence: Array  # [states]
    probabilities: Array  # [states]

    @classmethod
    def of(cls, world: World) -> "Truth":
        """Enumerates the world."""
        teacher, evidence = exact_world.true_denoiser(world)
        return cls(world, teacher, evidence, exact_world.state_probabilities(world, evidence))

    def measures(self, predictions: Array) -> dict[str, dict[str, float]]:
        """Perplexity, entropy and KL of samples from `predictions`, by number of steps."""
        steps = sorted({*STEPS, self.world.length})
        found = exact_world.sampler_measures(self.world, predictions, self.evidence, steps)
        return {str(n): measures._asdict() for n, measures in found.items()}


def parse_divergences(text: str) -> tuple[str, ...]:
    """The divergences that a flag names: one, several with commas, or "all".

    Raises:
      ConfigError: for a name that is none.
    """
    known = tuple(exact_round.OPTIMA)
    names = known if text == "all" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--divergence={text}: {name!r} is none of {', '.join(known)} (or all)."
            )
    return tuple(dict.fromkeys(names))


def round_dts(world: World, rounds: int | None) -> tuple[float, ...]:
    """Step sizes of the rounds: the world's, cut, or doubled on as far as 1/2.

    Raises:
      ConfigError: for a number of rounds that is not positive.
    """
    if rounds is None:
        return world.dts
    if rounds < 1:
        raise ConfigError(f"--rounds={rounds} must be at least 1.")
    dts = list(world.dts[:rounds])
    while len(dts) < rounds:
        dts.append(max(dts[-1], min(2 * dts[-1], 0.5)))
    return tuple(dts)


def closed_form(
    truth: Truth, divergences: Sequence[str], dts: Sequence[float]
) -> tuple[dict[str, Any], dict[str, list[Array]]]:
    """The optimum of every round.

    Args:
      truth: the world, enumerated.
      divergences: names.
      dts: step size of each round.

    Returns:
      The record (see `exact.json`), and the optima's predictions by divergence and round.
    """
    world = truth.world
    record: dict[str, Any] = {
        "world": {**dataclasses.asdict(world), "num_states": world.num_states},
        "data_entropy": exact_world.data_entropy(world, truth.evidence),
        "teacher": {"steps": truth.measures(truth.teacher)},
        "rounds": {},
    }
    optima: dict[str, list[Array]] = {}
    for divergence in divergences:
        began = time.monotonic()
        record["rounds"][divergence], optima[divergence] = [], []
        teacher = truth.teacher
        for number, dt in enumerate(dts, start=1):
            optimum = exact_round.round_optimum(teacher, dt, divergence)
            mean_loss = functools.partial(_mean_loss, truth, teacher, dt, divergence)
            entry = {
                "round": number,
                "dt": dt,
                "steps": truth.measures(optimum),
                "teacher_divergence": mean_loss(teacher),
                "floor": mean_loss(optimum),
                "kl_from_teacher": exact_round.mean_kl(optimum, teacher, truth.probabilities),
            }
            record["rounds"][divergence].append(entry)
            optima[divergence].append(optimum)
            teacher = optimum
        _say(
            f"{divergence}: KL(samples || language) at {world.length} steps "
            f"{_kls(record, divergence)} ({time.monotonic() - began:.1f} s)"
        )
    return record, optima


def train_beside(
    truth: Truth,
    record: dict[str, Any],
    optima: dict[str, list[Array]],
    dts: tuple[float, ...],
    config: StudentConfig,
) -> None:
    """Distills a transformer for each divergence and adds what it reached to `record`.

    Each round of `record["rounds"]` gets `"trained"`: `steps` as for the optimum;
    `kl_to_optimum`, KL(optimum || student) per masked position; `relative`, that over
    KL(optimum || teacher of the round); `relative_to_first`, over KL(optimum || first teacher);
    `own_kl`, KL to the optimum of the teacher that the student really had; `loss`, the last
    logged one.
    """
    began = time.monotonic()
    laboratory = Laboratory(truth.world, config, make_progress)
    start = laboratory.copy_teacher()
    copied = laboratory.predictions(start)
    record["training"] = {
        **dataclasses.asdict(config),
        "copy_kl": exact_round.mean_kl(truth.teacher, copied, truth.probabilities),
    }
    _say(f"copy of the teacher: KL {record['training']['copy_kl']:.1e} nats per masked token")
    for divergence, best in optima.items():
        exact_teacher = own_teacher = truth.teacher
        for entry, optimum, trained in zip(
            record["rounds"][divergence],
            best,
            laboratory.rounds(start, dts, divergence),
            strict=True,
        ):
            student = trained.predictions
            own_optimum = exact_round.round_optimum(own_teacher, trained.dt, divergence)
            kl = functools.partial(exact_round.mean_kl, probabilities=truth.probabilities)
            distance = kl(optimum, student)
            measured = truth.measures(student)
            entry["trained"] = {
                "steps": {n: v for n, v in measured.items() if int(n) in TRAINED_STEPS},
                "kl_to_optimum": distance,
                "relative": distance / kl(optimum, exact_teacher),
                "relative_to_first": distance / kl(optimum, truth.teacher),
                "own_kl": kl(own_optimum, student),
                "loss": trained.loss,
            }
            _say(
                f"{divergence}, round {entry['round']}: KL(optimum || student) {distance:.1e} nats "
                f"per masked token; the optimum is {kl(optimum, exact_teacher):.1e} from the "
                f"round's teacher and {kl(optimum, truth.teacher):.1e} from the first"
            )
            exact_teacher, own_teacher = optimum, student
    record["training"]["seconds"] = time.monotonic() - began


def write(record: dict[str, Any], directory: Path) -> list[Path]:
    """Writes exact.json and the figure; returns their paths.

    Raises:
      DataError: the directory cannot be written to.
    """
    try:
        path = directory / "exact.json"
        write_json(path, record, indent=1)
        return [
            path,
            *(write_exact(record, directory / f"exact.{kind}") for kind in ("svg", "png")),
        ]
    except OSError as error:
        raise DataError(f"--output={directory} cannot be written to: {error.strerror}.") from error


def main(argv: Sequence[str]) -> None:
    """Computes, trains if asked to, and writes."""
    values = flags.FLAGS
    if len(argv) > 1:
        raise ConfigError(f"Unknown argument {argv[1]!r}; see --help.")
    if values.output is None:
        raise ConfigError("--output is missing: the directory to write to.")
    divergences = parse_divergences(values.divergence)
    world = exact_world.load_world(values.world) if values.world else exact_world.sticky_world()
    dts = round_dts(world, values.rounds)
    config = dataclasses.replace(
        _DEFAULT,
        copy_steps=values.copy_steps,
        steps_per_round=values.steps_per_round,
        seed=values.seed,
    )
    _say(
        f"{world.name}: {world.vocab_size} tokens, length {world.length}, "
        f"{world.num_states:,} partly masked states, {len(dts)} rounds"
    )
    truth = Truth.of(world)
    record, optima = closed_form(truth, divergences, dts)
    write(record, Path(values.output))
    if values.train:
        try:
            train_beside(truth, record, optima, dts, config)
        except Interrupted as stop:
            raise UserError(
                "Stopped while training; what was computed exactly is in --output. Repeat the "
                "command to train again from the start."
            ) from stop
    for path in write(record, Path(values.output)):
        _say(str(path))


def define_flags() -> None:
    """Defines this program's flags; not on import, so that other programs may use their names."""
    flags.DEFINE_string("output", None, "Directory for exact.json, exact.svg and exact.png.")
    flags.DEFINE_string("world", None, "JSON file of a world; the built-in sticky chain if absent.")
    flags.DEFINE_string(
        "divergence",
        ",".join(DEFAULT_DIVERGENCES),
        f"One or several of {', '.join(exact_round.OPTIMA)}, with commas; or all.",
    )
    flags.DEFINE_integer(
        "rounds", None, "Number of rounds; as many as the world has dts if absent."
    )
    flags.DEFINE_boolean("train", False, "Also distill a transformer and compare it.")
    flags.DEFINE_integer("copy_steps", _DEFAULT.copy_steps, "Steps that copy the first teacher.")
    flags.DEFINE_integer("steps_per_round", _DEFAULT.steps_per_round, "Training steps of a round.")
    flags.DEFINE_integer("seed", 0, "Of parameters, batches and draws.")


def _mean_loss(truth: Truth, teacher: Array, dt: float, divergence: str, student: Array) -> float:
    losses = exact_round.expected_divergence(student, teacher, dt, divergence)
    return exact_round.mean_over_masked(losses, truth.probabilities, truth.world.vocab_size)


def _kls(record: dict[str, Any], divergence: str) -> str:
    at = str(record["world"]["length"])
    entries = [record["teacher"], *record["rounds"][divergence]]
    return " → ".join(f"{entry['steps'][at]['kl']:.3f}" for entry in entries)


def _say(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    define_flags()
    run_app(main)
