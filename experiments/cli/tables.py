"""Tables for the terminal."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import JustifyMethod
from rich.table import Table

BORDER = 3  # columns of the terminal between the texts of two columns of a table


def decimals(value: float | None) -> str:
    """A number with four decimals and without a sign of zero; None is infinite."""
    return "∞" if value is None else f"{round(value, 4) + 0.0:.4f}"


def rich_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = (), **style: Any
) -> Table:
    """A table for the terminal, as `sdtt_jax.markdown.table` makes one for a page.

    `columns` are titles, `right` those that are aligned right, and `style` goes to `rich.table.Table`.
    """
    table = Table(**style)
    for column in columns:
        justify: JustifyMethod = "right" if column in right else "left"
        # Rich would cut what is too wide for the terminal, figures too.
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def narrow_tables(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[Table]:
    """A table in parts that are no wider than a terminal: each has all rows, and some of the columns.

    The first columns (two or more) that tell the rows apart are repeated in every part. They get half of
    the terminal's width at most, and are folded where that is too little.
    """
    wide = [
        max(cell_len(line) for cell in cells for line in cell.splitlines() or [""]) + BORDER
        for cells in zip(columns, *rows, strict=True)
    ]
    repeated = min(_telling(rows), len(columns))
    most = width // 2
    if sum(wide[:repeated]) > most:
        wide[:repeated] = [min(w, most // repeated) for w in wide[:repeated]]
    room = width - 1 - sum(wide[:repeated])
    groups: list[list[int]] = [[]]
    for index in range(repeated, len(columns)):
        if groups[-1] and sum(wide[i] for i in groups[-1]) + wide[index] > room:
            groups.append([])
        groups[-1].append(index)
    tables = []
    for group in groups:
        shown = [*range(repeated), *group]
        table = rich_table([columns[i] for i in shown], [[row[i] for i in shown] for row in rows])
        if len(groups) > 1:
            for column, limit in zip(table.columns, wide[:repeated], strict=False):
                column.max_width = limit - BORDER
        tables.append(table)
    return tables


def _telling(rows: Sequence[Sequence[str]]) -> int:
    """How many columns tell the rows apart, from the first one on, two or more; two if none do."""
    every = range(2, len(rows[0]) if rows else 2)
    return next((n for n in every if len({tuple(row[:n]) for row in rows}) == len(rows)), 2)
