"""Results side by side: tables at the terminal and as Markdown, pictures of the race."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from sdtt_jax.config import require
from sdtt_jax.errors import DataError
from sdtt_jax.paths import write_text
from sdtt_jax.reporting.evaluations import (
    Evaluation,
    Table,
    race,
    race_batches,
    read_evaluation,
    tables,
)
from sdtt_jax.reporting.picture import write_race

WIDTH = 150


def compare(paths: Sequence[str], folder: str | None) -> None:
    """Prints the tables of several files of results.

    Args:
      paths: files that `experiments.evaluate` wrote.
      folder: gets comparison.md, and a picture of the race for each batch size; None for neither.

    Raises:
      DataError: a file is something else, or the folder cannot be written to.
    """
    require(len(set(paths)) == len(paths), "--compare names a file twice.")
    evaluations = [read_evaluation(path) for path in paths]
    if len({evaluation.name for evaluation in evaluations}) < len(evaluations):
        evaluations = [
            dataclasses.replace(evaluation, name=path)
            for evaluation, path in zip(evaluations, paths, strict=True)
        ]
    console = Console()
    if not console.is_terminal:
        # Where there is no terminal Rich assumes 80 columns, which would wrap the tables' cells.
        console = Console(width=WIDTH)
    for table in tables(evaluations):
        shown = RichTable(title=table.title)
        for column in table.columns:
            shown.add_column(column)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    if folder is not None:
        target = Path(folder)
        require(not target.is_file(), f"--output={folder} is a file; --compare needs a folder.")
        try:
            for path in write_comparison(evaluations, target):
                print(path, file=sys.stderr)
        except OSError as error:
            raise DataError(f"--output={folder} cannot be written to: {error.strerror}.") from None


def write_comparison(evaluations: Sequence[Evaluation], folder: Path) -> list[Path]:
    """comparison.md, and race_batch_N.png for every batch size at which two points can race."""
    written = []
    pictures = []
    for batch in race_batches(evaluations):
        points = race(evaluations, batch)
        if len(points) > 1:
            pictures.append(write_race(points, batch, folder / f"race_batch_{batch:03d}.png"))
    text = "\n\n".join(markdown(table) for table in tables(evaluations))
    text += "".join(f"\n\n![Quality against latency]({picture.name})" for picture in pictures)
    write_text(folder / "comparison.md", text + "\n")
    written.append(folder / "comparison.md")
    return written + pictures


def markdown(table: Table) -> str:
    """A table as Markdown."""
    lines = [f"## {table.title}", "", "| " + " | ".join(table.columns) + " |"]
    lines.append("|" + "---|" * len(table.columns))
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows
    ]
    return "\n".join(lines)
