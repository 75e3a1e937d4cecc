"""SDTT where everything can be computed: the exact optimum of each round, beside a trained student.

The language is a small Markov chain, the teacher its true denoiser. Without further flags, the
optimum of every round is computed in closed form for kl-bwd and kl-fwd, in seconds:

  python -m experiments.exact --output=runs/exact

With --train, a small transformer is also distilled, with the same masking, trajectories,
divergences and optimizer as on text, and compared with the optimum (a few minutes on 2 cores):

  python -m experiments.exact --train --output=runs/exact

With --floor, the best students there can be whose tokens are independent given a partly masked
text, and mixtures of them, at each of --calls (a few minutes on 2 cores):

  python -m experiments.exact --floor --calls=1,2,4 --output=runs/exact

With --distillers, the distillers that are named stand beside it in results.json, by both KLs, total variation
and entropy at each of --calls; all but SDTT's optimum are trained:

  python -m experiments.exact --distillers=sdtt,coupled --train --calls=1,2,4 --output=runs/exact

With --matched, teacher, rounds and students are also measured at the temperature at which their samples
have the chain's entropy:

  python -m experiments.exact --matched=joint --calls=2,4,8,16 --output=runs/exact

With --decoders, the exact law of every decoder that is named (separated by spaces), of the true denoiser:

  python -m experiments.exact --decoders="confidence remdm:eta=0.1" --calls=2,4,8 --output=runs/exact

Writes results.json (all numbers), exact.svg and exact.png to --output. Another language is a JSON
file, --world=FILE, with "initial" [V], "transition" [V][V], "length", and optionally "dts", the
step size of each round.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import flags
from rich.table import Table

from experiments.cli.app import check_flags, run_app, wide_console
from sdtt_jax.config import choose, require
from sdtt_jax.errors import DataError, UserError
from sdtt_jax.laboratory.coupled import CoupledStudentConfig
from sdtt_jax.laboratory.decoders import decoder_measures, enumerable
from sdtt_jax.laboratory.distillers import DISTILLERS, Asked, measure_distillers
from sdtt_jax.laboratory.floor import find_floor
from sdtt_jax.laboratory.matched import ENTROPIES, matched_measures
from sdtt_jax.laboratory.optimum import OPTIMA
from sdtt_jax.laboratory.others import OthersConfig, make_bench
from sdtt_jax.laboratory.record import Record, Truth, closed_form, train_beside
from sdtt_jax.laboratory.search import SearchConfig
from sdtt_jax.laboratory.student import StudentConfig
from sdtt_jax.laboratory.world import Array, World, load_world, sticky_world
from sdtt_jax.paths import as_path, write_json
from sdtt_jax.reporting.picture import write_exact
from sdtt_jax.training.loop import Interrupted

_DEFAULT, _COUPLED, _OTHERS = StudentConfig(), CoupledStudentConfig(), OthersConfig()
_WIDTH = 120  # of the table in a log
COLUMNS = {
    "kl": "KL(samples ‖ chain)",
    "kl_reverse": "KL(chain ‖ samples)",
    "tv": "total variation",
    "entropy": "entropy",
}


def parse_divergences(text: str) -> tuple[str, ...]:
    """The divergences that --divergence names: one, several with commas, or "all"."""
    names = tuple(OPTIMA) if text == "all" else tuple(name.strip() for name in text.split(","))
    for name in names:
        known = f"{', '.join(OPTIMA)} (or all)"
        require(name in OPTIMA, f"--divergence={text}: {name!r} is not one of {known}.")
    return tuple(dict.fromkeys(names))


def parse_distillers(names: Sequence[str], *, train: bool) -> tuple[str, ...]:
    """The distillers that --distillers names; what only training can measure needs --train."""
    for name in names:
        choose("--distillers", name, DISTILLERS)
        require(
            train or not DISTILLERS[name].trains,
            f"--distillers={name} is measured by a trained student; add --train.",
        )
    return tuple(dict.fromkeys(names))


def parse_calls(texts: Sequence[str]) -> tuple[int, ...]:
    """The numbers of network calls that --calls names."""
    good = all(text.strip().isdecimal() and int(text) > 0 for text in texts) and len(texts) > 0
    require(good, f"--calls={','.join(texts)} must be positive whole numbers, separated by commas.")
    return tuple(dict.fromkeys(int(text) for text in texts))


def parse_mixtures(texts: Sequence[str]) -> tuple[int, ...]:
    """The sizes of mixtures that --mixtures names; none if it is empty."""
    sizes = [text.strip() for text in texts if text.strip()]
    good = all(text.isdecimal() and int(text) > 1 for text in sizes)
    require(
        good,
        f"--mixtures={','.join(texts)} must be whole numbers of at least 2, separated by commas.",
    )
    return tuple(dict.fromkeys(int(text) for text in sizes))


def round_dts(world: World, rounds: int | None) -> tuple[float, ...]:
    """Step sizes of the rounds: the world's, cut to --rounds, or doubled on as far as 1/2."""
    if rounds is None:
        return world.dts
    require(rounds >= 1, f"--rounds={rounds} must be at least 1.")
    dts = list(world.dts[:rounds])
    while len(dts) < rounds:
        dts.append(max(dts[-1], min(2 * dts[-1], 0.5)))
    return tuple(dts)


def write(record: Record, folder: Path) -> list[Path]:
    """Writes results.json and the figure into --output; returns their paths."""
    try:
        write_json(folder / "results.json", record, indent=1)
        pictures = [write_exact(record, folder / f"exact.{kind}") for kind in ("svg", "png")]
    except OSError as error:
        raise DataError(f"--output={folder} cannot be written to: {error.strerror}.") from error
    return [folder / "results.json", *pictures]


def measures_table(record: Record, calls: Sequence[int]) -> Table:
    """A section for each number of calls: teacher, last rounds, distillers, floors and mixtures.

    What was not measured at one of them has no row there.
    """
    entropy = f"entropy per token; the chain's is {record['data_entropy']:.3f}"
    title = f"{record['world']['name']}, nats ({entropy})"
    return _table(title, COLUMNS, {n: _measured(record, n) for n in map(str, calls)})


def matched_table(record: Record, calls: Sequence[int]) -> Table:
    """A section for each number of calls, of what --matched measures: teacher, every round, students."""
    name, entropy = record["world"]["name"], record["matched"]
    title = (
        f"{name}, nats, at the chain's {entropy} entropy (* the nearest that a temperature gets)"
    )
    columns = {"temperature": "temperature", **COLUMNS}
    return _table(title, columns, {n: _matched(record, n) for n in map(str, calls)})


def _table(
    title: str, columns: dict[str, str], rows: dict[str, Iterator[tuple[str, Record]]]
) -> Table:
    table = Table(title=title)
    table.add_column("calls", justify="right")
    table.add_column("samples of")
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for n, measured in rows.items():
        for index, (name, measures) in enumerate(measured):
            values = (_number(measures[column]) for column in columns)
            table.add_row("" if index else n, name, *values)
        table.add_section()
    return table


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{abs(value):.4f}"


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
    for mode, by_calls in record.get("decoders", {}).items():
        if n in by_calls:
            yield f"{mode} ({by_calls[n]['calls']:.2f} calls)", by_calls[n]
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
    """Adds to entries of the record, each of a table of predictions, what it is at the chain's entropy."""
    for entry, table in zip(entries, tables, strict=True):
        entry["matched"] = measure([table])


def main(argv: Sequence[str]) -> None:
    """Computes, trains if asked to, and writes."""
    values = flags.FLAGS
    check_flags(argv)
    require(values.output is not None, "--output is missing: the folder to write to.")
    is_file = as_path(values.output).is_file()
    require(not is_file, f"--output={values.output} is a file; name a folder.")
    divergences = parse_divergences(values.divergence)
    world = load_world(values.world) if values.world else sticky_world()
    dts = round_dts(world, values.rounds)
    distillers = parse_distillers(values.distillers, train=values.train)
    for mode in values.decoders:
        enumerable(mode)
    calls, mixtures = parse_calls(values.calls), parse_mixtures(values.mixtures)
    coupled = CoupledStudentConfig(num_steps=values.coupled_steps, seed=values.seed)
    others = OthersConfig(num_steps=values.student_steps)
    config = StudentConfig(
        copy_steps=values.copy_steps, steps_per_round=values.steps_per_round, seed=values.seed
    )
    _print(
        f"{world.name}: {world.vocab_size} tokens, length {world.length}, "
        f"{world.num_states:,} partly masked states, {len(dts)} rounds"
    )
    truth = Truth.of(world)
    record, optima = closed_form(truth, divergences, dts, _print)
    measure = functools.partial(matched_measures, truth, calls=calls, entropy=values.matched)
    if values.matched:
        record["matched"] = values.matched
        add_matched([record["teacher"]], [truth.teacher], measure)
        for divergence, tables in optima.items():
            add_matched(record["rounds"][divergence], tables, measure)
    paths = write(record, as_path(values.output))
    if values.floor:
        starts = {divergence: rounds[-1] for divergence, rounds in optima.items()}
        search = SearchConfig(seed=values.seed)
        record |= find_floor(truth, calls, starts, mixtures, search, _print)
        paths = write(record, as_path(values.output))
    if values.decoders:
        record["decoders"] = decoder_measures(truth, values.decoders, calls)
        paths = write(record, as_path(values.output))
    if values.train or distillers:
        try:
            # Distillers that are named are all that is trained.
            if values.train and not distillers:
                trained = train_beside(truth, record, optima, config, _print)
                for divergence, tables in trained.items() if values.matched else ():
                    entries = [entry["trained"] for entry in record["rounds"][divergence]]
                    add_matched(entries, tables, measure)
            if distillers:
                bench = make_bench(truth, calls, coupled, others)
                last = optima[divergences[0]]
                asked = Asked(truth, last, calls, coupled, bench, values.matched)
                began = time.monotonic()
                record["distillers"] = measure_distillers(distillers, asked)
                seconds = time.monotonic() - began
                if any(DISTILLERS[name].trains for name in distillers):
                    record["coupled_training"] = dataclasses.asdict(coupled) | {"seconds": seconds}
                    record["student_training"] = dataclasses.asdict(others)
        except Interrupted as stop:
            raise UserError(
                "Stopped while training; what was computed exactly is in --output. Repeat the "
                "command to train again from the start."
            ) from stop
        paths = write(record, as_path(values.output))
    console = wide_console(_WIDTH)
    console.print(measures_table(record, calls))
    if values.matched:
        console.print(matched_table(record, calls))
    _print("\n".join(str(path) for path in paths))


def define_flags() -> None:
    """Defines this program's flags; not on import, so that other programs may use their names."""
    flags.DEFINE_string("output", None, "Folder for results.json, exact.svg and exact.png.")
    flags.DEFINE_string("world", None, "JSON file of a world; default: the built-in sticky chain.")
    names = ", ".join(OPTIMA)
    flags.DEFINE_string(
        "divergence", "kl-bwd,kl-fwd", f"One or more of {names}, separated by commas; or all."
    )
    flags.DEFINE_integer("rounds", None, "Number of rounds; default: one for each dt of the world.")
    flags.DEFINE_boolean("train", False, "Also train students and compare them.")
    flags.DEFINE_integer("copy_steps", _DEFAULT.copy_steps, "Steps that copy the first teacher.")
    flags.DEFINE_integer("steps_per_round", _DEFAULT.steps_per_round, "Training steps of a round.")
    flags.DEFINE_list(
        "distillers", [], f"Distillers to measure beside the optima, of {', '.join(DISTILLERS)}."
    )
    flags.DEFINE_list(
        "calls", ["1", "2", "4", "8"], "Network calls of floors, distillers and the table."
    )
    flags.DEFINE_boolean(
        "floor", False, "Also search for the best factorised students there can be."
    )
    flags.DEFINE_enum(
        "matched", None, ENTROPIES, "Also measure at the chain's entropy, the joint one or in-text."
    )
    flags.DEFINE_spaceseplist(
        "decoders",
        [],
        "Modes of the sampler to compute the law of, as experiments.sample takes them.",
    )
    flags.DEFINE_list("mixtures", ["4"], "Sizes of the mixtures of such students, from 2, or none.")
    flags.DEFINE_integer(
        "coupled_steps", _COUPLED.num_steps, "Training steps of a noise-coupled student."
    )
    flags.DEFINE_integer(
        "student_steps",
        _OTHERS.num_steps,
        "Training steps of each student of the distillers that are not noise-coupled.",
    )
    flags.DEFINE_integer("seed", _DEFAULT.seed, "Seed of parameters, batches and draws.")


def _print(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    define_flags()
    run_app(main)
