"""Tables of functions by name, to which users add their own."""

from typing import TypeVar

import jax

Row = TypeVar("Row")


class Rows(dict[str, Row]):
    """A table whose rows compiled programs hold, and find by name.

    Where a row is replaced, as by a cell of a notebook that runs again, JAX's programs are forgotten.
    """

    def __setitem__(self, name: str, row: Row) -> None:
        if self.get(name, row) is not row:
            jax.clear_caches()
        super().__setitem__(name, row)
