"""Rewrites a run's report, and draws figures to PNG or SVG files.

Perplexity and entropy against the number of steps:

  python -m experiments.report --workdir=runs/evening --picture=evening.png

Perplexity and entropy against latency, as experiments.evaluate --suite=generation,latency measured
them:

  python -m experiments.report --workdir=runs/demo --race=race.png --batch=8

The figure of experiments.exact:

  python -m experiments.report --exact=runs/exact/results.json --picture=exact.png

With --workdir, the run's report.html is written as well.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.cli.app import check_flags, refuse, run_app
from sdtt_jax.config import require
from sdtt_jax.errors import DataError
from sdtt_jax.formats import read_json
from sdtt_jax.paths import as_path
from sdtt_jax.reporting import evaluations, write_report

SUFFIXES = (".png", ".svg")


def write_exact_from(results: str, picture: Path) -> Path:
    """Draws a record of `experiments.exact`."""
    from sdtt_jax.reporting.picture import write_exact  # imported when needed: it needs Matplotlib

    record = read_json(results, remedy="give the results.json that experiments.exact wrote")
    try:
        drawn = write_exact(record, picture)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise DataError(
            f"--exact={results} is not a result of experiments.exact; give the results.json that it wrote."
        ) from None
    if drawn is None:
        raise DataError(f"--exact={results}: all samples are exact, so there is nothing to draw.")
    return drawn


def write_race_of(workdir: str, batch: int, picture: Path) -> Path:
    """Draws quality against latency, as measured for a run at one batch size."""
    points = evaluations.race(evaluations.read_evaluations(workdir), batch)
    require(
        len(points) > 1,
        f"--batch={batch}: fewer than two models or numbers of steps were both judged and timed at this "
        "batch size, with one length and one sampler; measure them with experiments.evaluate "
        "--suite=generation,latency.",
    )
    from sdtt_jax.reporting.picture import write_race

    return write_race(points, batch, picture)


def report(
    workdir: str | None = None,
    exact: str | None = None,
    picture: str | None = None,
    race: str | None = None,
    batch: int = 1,
) -> list[Path]:
    """Writes what the flags of these names ask for; returns the paths."""
    require((workdir is None) != (exact is None), "Give either --workdir or --exact; see --help.")
    for name, path in {"picture": picture, "race": race}.items():
        told = f"--{name}={path} must end in {' or '.join(SUFFIXES)}: it is the picture to write."
        require(path is None or as_path(path).suffix in SUFFIXES, told)
    if exact is not None:
        require(picture is not None, "--exact needs --picture, the file to draw.")
        return [write_exact_from(exact, as_path(str(picture)))]
    paths = [write_report(str(workdir))]
    if picture is not None:
        from sdtt_jax.reporting.picture import write_quality

        paths.append(write_quality(str(workdir), picture))
    if race is not None:
        paths.append(write_race_of(str(workdir), batch, as_path(race)))
    return paths


def main(argv: Sequence[str]) -> None:
    """Writes what the flags ask for, and the paths to standard output."""
    check_flags(argv)
    given = flags.FLAGS
    if given.exact is not None:
        refuse("--exact has no race", "race", "batch")
    if given.race is None:
        refuse("Without --race there is no batch size to show", "batch")
    for path in report(given.workdir, given.exact, given.picture, given.race, given.batch):
        print(path)


def define_flags() -> None:
    """Defines this program's flags; not on import, so that other programs may use their names."""
    flags.DEFINE_string("workdir", None, "The run to report on; its report.html is written.")
    flags.DEFINE_string("exact", None, "A results.json of experiments.exact; instead of --workdir.")
    flags.DEFINE_string("picture", None, "Draw the main figure to this file, .png or .svg.")
    flags.DEFINE_string(
        "race",
        None,
        "Draw quality against latency, as measured for the run, to this picture, .png or .svg.",
    )
    flags.DEFINE_integer("batch", 1, "The batch size that --race shows.", lower_bound=1)


if __name__ == "__main__":
    define_flags()
    run_app(main)
