"""Tables for the terminal."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich.table import Table


def rich_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Collection[str] = (),
    **style: Any,
) -> Table:
    """A table for the terminal, as `sdtt_jax.markdown.table` makes one for a page.

    Args:
      columns: the columns' titles.
      rows: cells, as many as there are columns.
      right: titles of the columns that are aligned right.
      **style: arguments of `rich.table.Table`, such as its title.
    """
    table = Table(**style)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    for row in rows:
        table.add_row(*row)
    return table
