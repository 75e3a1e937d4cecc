"""Tables in Markdown."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

# A bar within a cell.
_BAR = r"\|"


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Collection[str] = ()
) -> str:
    """A table.

    Args:
      columns: their titles.
      rows: cells, as many as there are columns.
      right: columns that are aligned at the right.

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
