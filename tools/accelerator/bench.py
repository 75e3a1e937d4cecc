"""The clock, the sizes and the record of one part of the measurements."""

import dataclasses
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from launch.accelerators import Chip, chip_of_device
from sdtt_jax.formats import write_json

BenchRow = dict[str, Any]
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")
# A timing is the median of this many measurements, each of as many calls as take this long.
MEASUREMENTS, MEASUREMENT_S = 5, 0.05


@dataclasses.dataclass
class Bench:
    """One part's clock and record."""

    until: float  # by `time.monotonic`, when the part should have ended
    # Records of the earlier parts, by name.
    earlier: dict[str, Any] = dataclasses.field(default_factory=dict)
    file: Path | None = None  # where the record is written, after every row; None for nowhere
    folder: Path = Path()  # for further files
    tiny: bool = False  # sizes for a CPU
    took: float = 0.0  # seconds of the last row
    # "tables", rows by title; "skipped", sentences; "notes", sentences.
    record: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"tables": {}, "skipped": [], "notes": []}
    )

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.until - time.monotonic()

    def has(self, seconds: float, what: str) -> bool:
        """Whether there is time for something; if not, the record says that it was skipped.

        With the sizes for a CPU, everything is quick.
        """
        if self.left >= (0 if self.tiny else seconds):
            return True
        self.record["skipped"].append(
            f"{what} was left out: it takes about {seconds:.0f} s, but only {max(self.left, 0):.0f} s were "
            "left"
        )
        self.save()
        return False

    def row(
        self, table: str, what: BenchRow, measure: Callable[..., BenchRow], *arguments: Any
    ) -> BenchRow:
        """Adds and returns a row: `what` with the result of `measure(*arguments)`, or with its error."""
        began = time.monotonic()
        try:
            row = what | measure(*arguments)
        except Exception as error:
            full = any(sign in str(error) for sign in OUT_OF_MEMORY)
            # The start of the message is enough; a traceback would keep the measurement's arrays alive.
            said = "out of memory" if full else f"{type(error).__name__}: {error}"[:400]
            row = what | {"error": " ".join(said.split())}
        gc.collect()
        self.record["tables"].setdefault(table, []).append(row)
        self.save()
        self.took = time.monotonic() - began
        _say(f"{table} [{self.took:.1f} s]", row)
        return row

    def rows(self, table: str, rows: list[BenchRow]) -> None:
        """Adds rows that are known already."""
        self.record["tables"].setdefault(table, []).extend(rows)
        self.save()
        for row in rows:
            _say(table, row)

    def note(self, sentence: str) -> None:
        """Adds a sentence that the page shows above its tables."""
        self.record["notes"].append(sentence)
        print(f"  {sentence}", file=sys.stderr, flush=True)

    def save(self) -> None:
        """Writes the record."""
        if self.file is not None:
            write_json(self.file, self.record)


def _say(title: str, row: BenchRow) -> None:
    shown = ", ".join(f"{name} {text(value)}" for name, value in row.items())
    print(f"  {title}: {shown}", file=sys.stderr, flush=True)


def text(value: Any) -> str:
    """The text of a cell: floats have four digits, or no fraction from 10,000 on."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return "–" if value is None else str(value)


def seconds_of(function: Callable[..., Any], *arguments: Any) -> float:
    """Median seconds of a call, after one that compiles and one that warms up.

    Calls are dispatched without waiting, as in a training loop, so that the host's own work does not count.
    """
    jax.block_until_ready(function(*arguments))
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    once = time.perf_counter() - began
    calls = max(1, min(1000, int(MEASUREMENT_S / max(once, 1e-6))))

    def measurement() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            result = function(*arguments)
        jax.block_until_ready(result)
        return (time.perf_counter() - began) / calls

    return statistics.median(measurement() for _ in range(MEASUREMENTS))


def chip() -> Chip | None:
    """The peak numbers of the first device; None where the table of accelerators lacks it."""
    return chip_of_device(jax.devices()[0].device_kind)


def share_of_peak(flops_per_s: float) -> float | None:
    """FLOP/s as a share of the chip's bfloat16 peak (MFU); None where that is not known."""
    known = chip()
    return None if known is None else flops_per_s / known.flops
