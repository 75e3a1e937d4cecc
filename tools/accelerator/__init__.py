"""Measures one GPU or TPU VM: `python -m tools.accelerator --output=DIR`.

Each part of the measurements is a process of its own with its share of the time (`__main__`, `worker`), and
fills tables of figures (`bench`), from which the page is written (`page`). This package may use all of the
library, the benchmark's cases in `experiments`, and the table of accelerators in `launch`.
"""

from typing import NamedTuple


class BenchPart(NamedTuple):
    """A part of the measurements: a function of the part's name, called with a `Bench`."""

    module: str  # has the function; imported when the part runs, so a failure stops only it
    share: float  # of the time
    title: str  # on the page


# The most useful first.
PARTS = {
    "machine": BenchPart("machine", 0.05, "The machine"),
    "kernels": BenchPart("kernels", 0.14, "Kernels against the CPU"),
    "training": BenchPart("steps", 0.22, "Training, small size"),
    "race": BenchPart("writing", 0.12, "The race"),
    "sampling": BenchPart("writing", 0.13, "Sampling, small size"),
    "profile": BenchPart("profiling", 0.10, "Where the time goes"),
    "saving": BenchPart("steps", 0.04, "Saving and restoring"),
    "medium": BenchPart("steps", 0.11, "Training, medium size"),
    "tuning": BenchPart("steps", 0.09, "Other settings"),
}
