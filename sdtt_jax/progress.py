"""What a person at the terminal sees of a training run."""

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """Told the steps done, and the values of the latest logged step; a context manager."""

    def __enter__(self) -> "Progress": ...

    def __exit__(self, *exception: Any) -> None: ...

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None: ...


def make_progress(
    title: str, num_steps: int, *, stream: TextIO | None = None, interval: float = 10.0
) -> Progress:
    """A live bar where there is a terminal, elsewhere plain lines.

    Args:
      title: e.g. "distill, round 2".
      num_steps: steps in all.
      stream: stderr if None.
      interval: seconds between plain lines.
    """
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        return BarProgress(title, num_steps, stream)
    return LineProgress(title, num_steps, stream, interval)


class BarProgress:
    """A live bar: step, loss, tokens per second, elapsed and remaining time."""

    def __init__(self, title: str, num_steps: int, stream: TextIO):
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(file=stream),
        )
        self._task = self._bar.add_task(title, total=num_steps, values="")

    def __enter__(self) -> "BarProgress":
        self._bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.stop()

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        self._bar.update(self._task, completed=step)
        if values is not None:
            self._bar.update(self._task, values=_values(values))


class LineProgress:
    """Plain lines, for logs: the first and last step, between them one every `interval` seconds."""

    def __init__(self, title: str, num_steps: int, stream: TextIO, interval: float = 10.0):
        self._title, self._num_steps, self._stream, self._interval = (
            title,
            num_steps,
            stream,
            interval,
        )
        self._first: tuple[int, float] | None = None
        self._due = 0.0

    def __enter__(self) -> "LineProgress":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stream.flush()

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        now = time.monotonic()
        self._first = self._first or (step, now)
        if values is None or (now < self._due and step < self._num_steps):
            return
        self._due = now + self._interval
        done, seconds = step - self._first[0], now - self._first[1]
        left = "" if done < 1 else f", {_clock(seconds / done * (self._num_steps - step))} left"
        head = f"{self._title}: step {step}/{self._num_steps}, {_values(values)}"
        self._stream.write(f"{head}, {_clock(seconds)} elapsed{left}\n")
        self._stream.flush()


def _values(values: Mapping[str, float]) -> str:
    parts = [f"loss {values['loss']:.4f}"] if "loss" in values else []
    if "tokens_per_second" in values:
        parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
