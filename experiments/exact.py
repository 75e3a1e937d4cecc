"""SDTT where everything can be computed: the exact optimum of each round, and a trained student.

The language is a small Markov chain, the teacher its true denoiser. Without further flags, the
optimum of every round is computed in closed form for kl-bwd and kl-fwd, in seconds:

  python -m experiments.exact --output=runs/exact

With --train, a small transformer is also distilled, with the same masking, trajectories,
divergences and optimizer as on text, and compared with the optimum (a few minutes on 2 cores):

  python -m experiments.exact --train --output=runs/exact

--floor also searches for the best possible factorised students (tokens independent given a partly
masked text), and for mixtures of them, at each of --calls (a few minutes on 2 cores):

  python -m experiments.exact --floor --calls=1,2,4 --output=runs/exact

With --distillers, results.json also has the named distillers, measured by both KLs, total variation
and entropy at each of --calls; all but SDTT's optimum are trained:

  python -m experiments.exact --distillers=sdtt,coupled --train --calls=1,2,4 --output=runs/exact

With --matched, teacher, rounds and students are also measured at the temperature at which their
samples have the chain's entropy:

  python -m experiments.exact --matched=joint --calls=2,4,8,16 --output=runs/exact

With --decoders, also the exact distribution of the texts that every named decoder (separated by
spaces) writes with the true denoiser:

  python -m experiments.exact --decoders="confidence remdm:eta=0.1" --calls=2,4,8 \\
      --output=runs/exact

and with --decoders_of=teacher,optimum,trained also with the last round's optimum and trained
student (which needs --train). If a decoder has a second model, that is always the true denoiser.

Writes results.json (all numbers), exact.svg and exact.png to --output. Another language is a JSON
file, --world=FILE, with "initial" [V], "transition" [V][V], "length", and optionally "dts", the
step size of each round.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.table import Table

from experiments.cli.app import check_flags, run_app, wide_console
from experiments.cli.fields import define_flags, from_flags, require_used
from experiments.cli.output import writing
from experiments.cli.tables import decimals, rich_table
from sdtt_jax.config import choose, each, given, positive, require, whole
from sdtt_jax.errors import UserError
from sdtt_jax.evaluation.settings import setting
from sdtt_jax.formats import write_json
from sdtt_jax.keys import check_seed
from sdtt_jax.laboratory.coupled import CoupledStudentConfig
from sdtt_jax.laboratory.decoders import check_measurable, decoder_measures
from sdtt_jax.laboratory.distillers import DISTILLERS, UNTRAINED, measure_distillers
from sdtt_jax.laboratory.floor import find_floor
from sdtt_jax.laboratory.matched import ENTROPIES, matched_measures
from sdtt_jax.laboratory.optimum import OPTIMA
from sdtt_jax.laboratory.others import OthersConfig, StudentBench
from sdtt_jax.laboratory.record import Record, Truth, closed_form, train_students
from sdtt_jax.laboratory.sampled import COUNTED
from sdtt_jax.laboratory.search import SearchConfig
from sdtt_jax.laboratory.student import StudentConfig
from sdtt_jax.laboratory.world import Array, World, load_world, sticky_world
from sdtt_jax.paths import as_path
from sdtt_jax.training.loop import Interrupted

_WIDTH = 120  # of the table in a log
_print = functools.partial(print, flush=True)
WHOSE = ("teacher", "optimum", "trained")
COLUMNS = {
    "kl": "KL(samples ‖ chain)",
    "kl_reverse": "KL(chain ‖ samples)",
    "tv": "total variation",
    "entropy": "entropy",
}


@dataclasses.dataclass(frozen=True)
class ExactPlan:
    """The settings: every field is a flag of `experiments.exact`."""

    output: str | None = setting(None, "Folder for results.json, exact.svg and exact.png.")
    world: str | None = setting(None, "JSON file of a world; default: the built-in sticky chain.")
    divergence: tuple[str, ...] = setting(
        ("kl-bwd", "kl-fwd"), f"One or more of {', '.join(OPTIMA)}, separated by commas; or all."
    )
    rounds: int | None = setting(None, "Number of rounds; default: one for each dt of the world.")
    train: bool = setting(False, "Also train students and compare them.")
    copy_steps: int = setting(
        StudentConfig.copy_steps, "Training steps in which a network first copies the teacher."
    )
    steps_per_round: int = setting(StudentConfig.steps_per_round, "Training steps of a round.")
    distillers: tuple[str, ...] = setting(
        (),
        f"Distillers to measure in addition to the optima, separated by commas: {', '.join(DISTILLERS)}.",
    )
    calls: tuple[int, ...] = setting(
        (1, 2, 4, 8), "Numbers of network calls for --floor, --distillers and the table."
    )
    floor: bool = setting(False, "Also search for the best possible factorised students.")
    matched: str = setting(
        "", f"Also measure at the chain's entropy, of this kind: {', '.join(ENTROPIES)}."
    )
    decoders: str = setting(
        "",
        "Decoders whose exact distributions are computed, as for experiments.sample --mode, separated "
        "by spaces.",
    )
    decoders_of: tuple[str, ...] = setting(
        ("teacher",),
        "Models that --decoders uses, separated by commas: teacher, optimum and trained (the last two "
        "of the last round).",
    )
    mixtures: tuple[int, ...] = setting(
        (4,),
        "Sizes, each at least 2, of the mixtures of factorised students that --floor also finds; or none.",
    )
    coupled_steps: int = setting(
        CoupledStudentConfig.num_steps, "Training steps of a noise-coupled student."
    )
    coupled_batch_size: int = setting(
        CoupledStudentConfig.batch_size,
        "Trajectories per training step of a noise-coupled student.",
    )
    student_steps: int = setting(
        OthersConfig.num_steps,
        "Training steps of each student of the distillers that are not noise-coupled.",
    )
    teacher_temperature: float = setting(
        OthersConfig.teacher_temperature,
        "Temperature of the target distribution (of whole texts) of idlm and coupled-idlm; 1: the chain's.",
    )
    seed: int = setting(StudentConfig.seed, "Seed of parameters, batches and draws.")

    def __post_init__(self) -> None:
        require(self.output is not None, "--output is missing; give the folder to write to.")
        for name in self.divergence:
            choose("--divergence", name, (*OPTIMA, "all"))
        for name in self.distillers:
            choose("--distillers", name, DISTILLERS)
            require(
                self.train or name == UNTRAINED,
                f"--distillers={name} is measured by training a student; add --train.",
            )
        require(len(self.calls) > 0, "--calls must name at least one number of network calls.")
        each(whole, 1, **{"--calls": self.calls})
        each(whole, 2, **{"--mixtures": self.mixtures})
        steps = ("copy_steps", "steps_per_round", "coupled_steps", "student_steps")
        for name in (*steps, "coupled_batch_size", *given(self, "rounds")):
            whole(1, **{f"--{name}": getattr(self, name)})
        positive(**{"--teacher_temperature": self.teacher_temperature})
        check_seed(self.seed)
        if self.matched:
            choose("--matched", self.matched, ENTROPIES)
        for mode in self.decoders.split():
            check_measurable(mode)
        for name in self.decoders_of:
            choose("--decoders_of", name, WHOSE)
        require(
            bool(self.decoders) or self.decoders_of == ("teacher",),
            "--decoders_of needs --decoders, the modes whose laws are computed.",
        )
        require(
            "trained" not in self.decoders_of or (self.train and not self.distillers),
            "--decoders_of=trained needs a trained student of SDTT; add --train, and leave out --distillers.",
        )
        students = bool({*self.distillers} - {UNTRAINED})
        of_students = "coupled_steps coupled_batch_size student_steps teacher_temperature"
        of_rounds, rounds = "copy_steps steps_per_round", self.train and not self.distillers
        readers = [("--train without --distillers", rounds, of_rounds)]
        readers += [("--distillers that are trained", students, of_students)]
        readers += [("--floor", self.floor, "mixtures")]
        require_used(self, [*readers, ("--train or --floor", self.train or self.floor, "seed")])

    @property
    def divergences(self) -> tuple[str, ...]:
        """The divergences that --divergence names."""
        return tuple(OPTIMA if "all" in self.divergence else dict.fromkeys(self.divergence))

    @property
    def coupled(self) -> CoupledStudentConfig:
        """The noise-coupled student."""
        return CoupledStudentConfig(
            num_steps=self.coupled_steps, batch_size=self.coupled_batch_size, seed=self.seed
        )


def round_dts(world: World, rounds: int | None) -> tuple[float, ...]:
    """Step sizes of the rounds: the world's, cut to --rounds, or continued by doubling up to 1/2."""
    if rounds is None:
        return world.dts
    dts = list(world.dts[:rounds])
    while len(dts) < rounds:
        dts.append(max(dts[-1], min(2 * dts[-1], 0.5)))
    return tuple(dts)


def write(record: Record, folder: Path) -> list[Path]:
    """Writes results.json and the figure into --output; returns their paths."""
    # Imported when needed: with Matplotlib, it would take twice as long to find a flag wrong.
    from sdtt_jax.reporting.picture import write_exact

    with writing(folder):
        write_json(folder / "results.json", record, indent=1)
        drawn = (write_exact(record, folder / f"exact.{kind}") for kind in ("svg", "png"))
        pictures = [path for path in drawn if path is not None]
    return [folder / "results.json", *pictures]


def measures_table(record: Record, calls: Sequence[int], *, matched: bool = False) -> Table:
    """A section for each number of calls: teacher, last rounds, distillers, floors and mixtures.

    A row is left out where nothing was measured at that number of calls. With `matched`, the table shows what
    --matched measures: teacher, every round, students.
    """
    name, entropy = record["world"]["name"], record["data_entropy"]
    title = f"{name}, nats (entropy per token; the chain's is {entropy:.3f})"
    columns, rows = COLUMNS, _measured
    if matched:
        kind = record["matched"]
        title = (
            f"{name}, nats, at the chain's {kind} entropy (* the nearest that a temperature gets)"
        )
        columns, rows = {"temperature": "temperature", **COLUMNS}, _matched
    found = {n: list(rows(record, n)) for n in map(str, calls)}
    counted = any("samples" in measures for part in found.values() for _, measures in part)
    table = rich_table(
        ("calls", "samples of", *columns.values()),
        (),
        right=("calls", *columns.values()),
        title=title,
        caption=COUNTED if counted else None,
    )
    for n, part in found.items():
        for index, (name, measures) in enumerate(part):
            values = (decimals(measures[column]) for column in columns)
            table.add_row("" if index else n, name + " †" * ("samples" in measures), *values)
        table.add_section()
    return table


def _measured(record: Record, n: str) -> Iterator[tuple[str, Record]]:
    found = {
        "teacher": record["teacher"]["steps"],
        **{
            f"SDTT {divergence}, round {len(rounds)}": rounds[-1]["steps"]
            for divergence, rounds in record["rounds"].items()
        },
        **_distillers(record, matched=False),
    }
    yield from ((name, by_calls[n]) for name, by_calls in found.items() if n in by_calls)
    every = record.get("decoders_of", {}) | {"": record.get("decoders", {})}
    for whose, decoders in every.items():
        for mode, by_calls in decoders.items():
            if n in by_calls:
                yield f"{whose} {mode} ({by_calls[n]['calls']:.2f} calls)".lstrip(), by_calls[n]
    for objective, measures in record.get("floor", {}).get(n, {}).items():
        yield f"floor, best {objective}", measures
    for size, by_calls in record.get("mixtures", {}).items():
        for objective, measures in by_calls.get(n, {}).items():
            yield f"mixture of {size}, best {objective}", measures


def _matched(record: Record, n: str) -> Iterator[tuple[str, Record]]:
    found = {"teacher": record["teacher"]["matched"]}
    for divergence, rounds in record["rounds"].items():
        for entry in rounds:
            name = f"SDTT {divergence}, round {entry['round']}"
            found[name] = entry["matched"]
            if "trained" in entry:
                found[f"{name}, trained"] = entry["trained"]["matched"]
    for name, by_calls in (found | _distillers(record, matched=True)).items():
        yield name + ("" if by_calls[n]["reached"] else " *"), by_calls[n]


def _distillers(record: Record, *, matched: bool) -> Record:
    found = record.get("distillers", {})
    return {name: found[name] for name in found if name.endswith("-matched") == matched}


def add_matched(
    entries: Sequence[Record], tables: Sequence[Array], measure: Callable[..., Record]
) -> None:
    """Adds to each entry of the record, one per table of predictions, its measures at the chain's entropy."""
    for entry, table in zip(entries, tables, strict=True):
        entry["matched"] = measure([table])


def measured(plan: ExactPlan, world: World) -> Iterator[Record]:
    """Yields the record each time that a part of it is complete; trained students come last."""
    dts = round_dts(world, plan.rounds)
    _print(
        f"{world.name}: {world.vocab_size} tokens, length {world.length}, "
        f"{world.num_states:,} partly masked states, {len(dts)} rounds"
    )
    truth = Truth.of(world)
    record, optima = closed_form(truth, plan.divergences, dts, _print)
    match = functools.partial(matched_measures, truth, calls=plan.calls, entropy=plan.matched)
    if plan.matched:
        record["matched"] = plan.matched
        add_matched([record["teacher"]], [truth.teacher], match)
        for divergence, tables in optima.items():
            add_matched(record["rounds"][divergence], tables, match)
    yield record
    if plan.floor:
        starts = {divergence: rounds[-1] for divergence, rounds in optima.items()}
        search = SearchConfig(seed=plan.seed)
        record |= find_floor(truth, plan.calls, starts, plan.mixtures, search, _print)
        yield record
    laws = functools.partial(decoder_measures, truth, plan.decoders.split(), plan.calls)
    if plan.decoders:
        if "teacher" in plan.decoders_of:
            record["decoders"] = laws()
        record["decoders_of"] = {}
        for divergence, tables in optima.items() if "optimum" in plan.decoders_of else ():
            record["decoders_of"][f"{divergence}, round {len(tables)},"] = laws(tables[-1])
        yield record
    if plan.distillers:  # then nothing else is trained
        record |= distilled(plan, truth, optima[plan.divergences[0]])
        yield record
    elif plan.train:
        student = StudentConfig(
            copy_steps=plan.copy_steps, steps_per_round=plan.steps_per_round, seed=plan.seed
        )
        trained = train_students(truth, record, optima, student, _print)
        for divergence, tables in trained.items() if plan.matched else ():
            entries = [entry["trained"] for entry in record["rounds"][divergence]]
            add_matched(entries, tables, match)
        for divergence, tables in trained.items() if "trained" in plan.decoders_of else ():
            record["decoders_of"][f"{divergence}, round {len(tables)}, trained,"] = laws(tables[-1])
        yield record


def distilled(plan: ExactPlan, truth: Truth, optima: Sequence[Array]) -> Record:
    """The part of the record that is about --distillers; `optima` are the optima of SDTT's rounds."""
    others = OthersConfig(
        num_steps=plan.student_steps, teacher_temperature=plan.teacher_temperature
    )
    bench = StudentBench(truth, plan.calls, plan.coupled, others, optima, plan.matched)
    began = time.monotonic()
    record: Record = {
        "distillers": measure_distillers(tuple(dict.fromkeys(plan.distillers)), bench)
    }
    seconds = time.monotonic() - began
    if {*plan.distillers} - {UNTRAINED}:
        record["coupled_training"] = dataclasses.asdict(plan.coupled) | {"seconds": seconds}
        record["student_training"] = dataclasses.asdict(others)
    return record


def main(argv: Sequence[str]) -> None:
    """Computes the exact results, trains students if asked to, and writes everything."""
    check_flags(argv)
    plan = from_flags(ExactPlan)
    folder = as_path(str(plan.output))
    require(not folder.is_file(), f"--output={plan.output} is a file; name a folder.")
    world = load_world(plan.world) if plan.world else sticky_world()
    try:
        for record in measured(plan, world):
            paths = write(record, folder)
    except Interrupted as stop:
        raise UserError(
            "Stopped while training; what was computed exactly is in --output. Repeat the "
            "command to train again from the start."
        ) from stop
    console = wide_console(_WIDTH)
    console.print(measures_table(record, plan.calls))
    if plan.matched:
        console.print(measures_table(record, plan.calls, matched=True))
    _print("\n".join(str(path) for path in paths))


if __name__ == "__main__":
    # Not on import, so that other programs may use the names of these flags.
    define_flags(ExactPlan)
    run_app(main)
