"""Tables in Markdown."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

# How a bar inside a cell is written.
_BAR = r"\|"


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Collection[str] = ()
) -> str:
    """A Markdown table.

    Args:
      columns: the titles of the columns.
      rows: lists of cells, one cell for each column.
      right: the titles of right-aligned columns.

    Examples:
      >>> print(table(["steps", "perplexity"], [[8, "14.2"]], right=["perplexity"]))
      | steps | perplexity |
      | --- | ---: |
      | 8 | 14.2 |
    """
    lines = [columns, ["---:" if column in right else "---" for column in columns], *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', _BAR) for cell in line)} |" for line in lines
    )
