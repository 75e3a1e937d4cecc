"""Tables for the terminal."""

import copy
import dataclasses
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from typing import Any

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.table import Table

BORDER = 3  # columns of the terminal between the texts of two columns of a table


def decimals(value: float | None) -> str:
    """A number with four decimals and without a sign of zero; None is infinite."""
    return "∞" if value is None else f"{round(value, 4) + 0.0:.4f}"


class Terminal(Console):
    """A console whose closed pipe ends the program as one ends `print`; Rich's own exits with status 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def rich_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = (), **style: Any
) -> Table:
    """A table for the terminal, as `sdtt_jax.markdown.table` makes one for a page.

    `columns` are titles, `right` those that are aligned right, and `style` goes to `rich.table.Table`.
    """
    table = _Table(**style)
    for column in columns:
        justify: JustifyMethod = "right" if column in right else "left"
        # Rich would cut what is too wide for the terminal, figures too.
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


class _Table(Table):
    """A table that a narrow terminal shows in parts: each has all rows, and some of the columns.

    The first columns that tell the rows apart (two if none do) are repeated in every part. They get half of
    the terminal's width at most, and are folded where that is too little.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        free, width = options.update(max_width=10_000), options.max_width
        if console.measure(self, options=free).maximum <= width:
            yield from super().__rich_console__(console, options)
            return
        cells: list[list[Any]] = [list(column.cells) for column in self.columns]
        # An empty cell of a section means the same as the one above it.
        cells = [[*accumulate(below, lambda above, cell: cell or above)] for below in cells]
        wide = [
            max(console.measure(cell, options=free).maximum for cell in (column.header, *below))
            + BORDER
            for column, below in zip(self.columns, cells, strict=True)
        ]
        rows, every = list(zip(*cells, strict=True)), range(1, len(wide))
        telling = (n for n in every if len({row[:n] for row in rows}) == len(rows))
        repeated = next(telling, min(2, len(wide)))
        left = width // 2 if repeated < len(wide) else width
        for done, index in enumerate(sorted(range(repeated), key=wide.__getitem__)):
            wide[index] = min(wide[index], left // (repeated - done))
            left -= wide[index]
        room = width - 1 - sum(wide[:repeated])
        groups: list[list[int]] = [[]]
        for index in range(repeated, len(wide)):
            if groups[-1] and sum(wide[i] for i in groups[-1]) + wide[index] > room:
                groups.append([])
            groups[-1].append(index)
        for group in groups:
            part, first, last = copy.copy(self), group is groups[0], group is groups[-1]
            part.title, part.caption = self.title if first else None, self.caption if last else None
            part.columns = [
                dataclasses.replace(self.columns[i], _index=place)
                for place, i in enumerate((*range(repeated), *group))
            ]
            for column, limit in zip(part.columns, wide[:repeated], strict=False):
                column.max_width = limit - BORDER
            yield from Table.__rich_console__(part, console, options)
