"""Progress of work in batches, for a person at the terminal."""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from sdtt_jax.parallel import processes
from sdtt_jax.progress import make_progress

T = TypeVar("T")


def tracked(title: str, items: Sequence[T], tokens: int) -> Iterator[tuple[int, T]]:
    """Yields the items with their numbers, and shows how many are done, tokens per second and time left.

    Args:
      title: what is worked on.
      items: one after the other.
      tokens: that one of them stands for.
    """
    if not processes.is_first():
        yield from enumerate(items)
        return
    began = time.monotonic()
    with make_progress(title, len(items)) as progress:
        progress.update(0)
        for index, item in enumerate(items):
            yield index, item
            done = index + 1
            rate = done * tokens / max(time.monotonic() - began, 1e-9)
            progress.update(done, {"tokens_per_second": rate})
