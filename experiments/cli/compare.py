"""Results side by side: tables at the terminal and as Markdown, pictures of the race."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli.app import wide_console
from experiments.cli.output import writing
from experiments.cli.tables import rich_table
from sdtt_jax import markdown
from sdtt_jax.config import require
from sdtt_jax.paths import as_path, is_remote, write_text
from sdtt_jax.reporting.evaluations import Evaluation, race, race_batches, read_evaluation, tables


def named_files(value: str) -> list[str]:
    """The files that --compare=VALUE names, separated by commas; or one that has commas in its name."""
    if as_path(value).is_file():
        return [value]
    return [name.strip() for name in value.split(",")]


def compare(paths: Sequence[str], folder: str | None) -> None:
    """Prints the tables of several files of results that `experiments.evaluate` wrote.

    If a folder is given, comparison.md and the pictures are written there.
    """
    files = {path if is_remote(path) else os.path.realpath(as_path(path)) for path in paths}
    require(len(files) == len(paths), "--compare names a file twice; give each once.")
    evaluations = [read_evaluation(path) for path in paths]
    if len({evaluation.name for evaluation in evaluations}) < len(evaluations):
        evaluations = [
            dataclasses.replace(evaluation, name=path)
            for evaluation, path in zip(evaluations, paths, strict=True)
        ]
    console = wide_console(150)
    for table in tables(evaluations):
        console.print(f"\n{table.title}", style="italic")
        console.print(rich_table(table.columns, table.rows))
        if table.note:
            console.print(table.note, highlight=False, soft_wrap=True)
    if folder is not None:
        target = as_path(folder)
        require(not target.is_file(), f"--output={folder} is a file; --compare needs a folder.")
        with writing(folder):
            for path in write_comparison(evaluations, target):
                print(path, file=sys.stderr)


def write_comparison(evaluations: Sequence[Evaluation], folder: Path) -> list[Path]:
    """comparison.md, race_batch_N.png for every batch size at which two points can race, and frontier.png."""
    from sdtt_jax.reporting.picture import write_frontier, write_race  # Matplotlib takes 0.4 s

    pictures = []
    for batch in race_batches(evaluations):
        points = race(evaluations, batch)
        if len(points) > 1:
            pictures.append(write_race(points, batch, folder / f"race_batch_{batch:03d}.png"))
    frontier = write_frontier(evaluations, folder / "frontier.png")
    page = folder / "comparison.md"
    parts = []
    for table in tables(evaluations):
        parts += [f"## {table.title}", markdown.table(table.columns, table.rows).rstrip("\n")]
        parts += [table.note] * bool(table.note)
    parts += [f"![Quality against latency]({picture.name})" for picture in pictures]
    if frontier is not None:
        parts.append(f"![Perplexity against entropy]({frontier.name})")
        pictures.append(frontier)
    write_text(page, "\n\n".join(parts) + "\n")
    return [page, *pictures]
