"""Progress of long tasks on the terminal: training steps, and passes over text."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TextIO, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

T = TypeVar("T")
Values = Mapping[str, float]
# Columns of the terminal: of the bar; below which there is none; of the times, with gaps and a slash.
BAR_WIDTH, NARROW, TIMES = 10, 60, 25


class Progress(Protocol):
    """Shows how many steps are done, with the values of the latest logged step."""

    def update(self, step: int, values: Values | None = None) -> None: ...


@contextlib.contextmanager
def make_progress(
    title: str,
    num_steps: int,
    *,
    shown: bool = True,
    stream: TextIO | None = None,
    interval: float = 10.0,
) -> Iterator[Progress]:
    """A live bar where there is a terminal that can move its cursor, elsewhere plain lines.

    Args:
      title: e.g. "distill, round 2".
      num_steps: steps in all.
      shown: False for processes that print nothing.
      stream: stderr if None.
      interval: seconds between plain lines.
    """
    stream = sys.stderr if stream is None else stream
    if not shown:
        yield NoProgress()
    elif stream.isatty() and (console := Console(file=stream)).is_interactive:
        # On a narrow terminal steps and times keep their widths, and the title has what they leave.
        columns = [
            _Title(console),
            BarColumn(BAR_WIDTH),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _Values("{task.fields[values]}"),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("left"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
        ]
        if console.width < NARROW:  # no bar and no values
            del columns[1:4:2]
        with RichProgress(*columns, console=console) as bar:
            yield BarProgress(bar, bar.add_task(title, total=num_steps, values=""))
    else:
        yield LineProgress(title, num_steps, stream, interval)


def tracked(
    title: str,
    items: Sequence[T],
    *,
    tokens: int,
    finished: int = 0,
    shown: bool = True,
    stream: TextIO | None = None,
) -> Iterator[T]:
    """Passes items on, and shows how many are done, tokens per second and the time left.

    Args:
      title: what is worked on.
      items: passed on one after the other; if there are none, nothing is shown.
      tokens: the number of tokens in one item, for the rate.
      finished: the number of items done before; they count as done, but not in the rate.
      shown: False for processes that print nothing.
      stream: stderr if None.
    """
    began = time.monotonic()
    total, shown = finished + len(items), shown and len(items) > 0
    with make_progress(title, total, shown=shown, stream=stream) as progress:
        progress.update(finished)
        for done, item in enumerate(items, start=1):
            yield item
            rate = done * tokens / max(time.monotonic() - began, 1e-9)
            progress.update(finished + done, {"tokens_per_second": rate})


class NoProgress:
    """Shows nothing."""

    def update(self, step: int, values: Values | None = None) -> None:
        """Does nothing."""


class _Title(ProgressColumn):
    """The title in bold; where steps and times leave too little room, without its middle."""

    def __init__(self, console: Console):
        super().__init__(Column(no_wrap=True))
        self._console = console

    def render(self, task: Task) -> Text:
        others = 2 * len(str(task.total)) + TIMES + (4 if self._console.width >= NARROW else 0)
        return Text(shortened(task.description, self._console.width - others), "bold")


class _Values(TextColumn):
    """Text that a narrow terminal shortens to one line that ends in "…"."""

    def __init__(self, text_format: str):
        super().__init__(text_format, table_column=Column())

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


class BarProgress:
    """A live bar: step, loss, tokens per second, elapsed and remaining time."""

    def __init__(self, bar: RichProgress, task: TaskID):
        self._bar, self._task = bar, task

    def update(self, step: int, values: Values | None = None) -> None:
        self._bar.update(self._task, completed=step)
        if values is not None:
            self._bar.update(self._task, values=_text(values))


class LineProgress:
    """Plain lines, for logs: one for the first and last step, and every `interval` seconds between them."""

    def __init__(self, title: str, num_steps: int, stream: TextIO, interval: float):
        self._title, self._num_steps = title, num_steps
        self._stream, self._interval = stream, interval
        # `(step, time)` at the start and after the first step, which also compiles; the rate counts from it.
        self._known: list[tuple[int, float]] = []
        self._due = 0.0

    def update(self, step: int, values: Values | None = None) -> None:
        now = time.monotonic()
        self._known = [*self._known, (step, now)][:2]
        if values is None or (now < self._due and step < self._num_steps):
            return
        self._due = now + self._interval
        parts = [f"{self._title}: step {step}/{self._num_steps}", _text(values)]
        parts.append(f"{_clock(now - self._known[0][1])} elapsed")
        before = [known for known in self._known if known[0] < step]
        if before:
            since, began = before[-1]
            seconds = (now - began) / (step - since) * (self._num_steps - step)
            parts.append(f"{_clock(seconds)} left")
        self._stream.write(", ".join(filter(None, parts)) + "\n")
        self._stream.flush()


def shortened(text: str, letters: int) -> str:
    """A text of so many letters at most, without its middle: names often differ at their ends."""
    letters = max(letters, 3)
    head = letters // 2 + letters // 10  # so many of 15 letters hold "round_01"
    return text if len(text) <= letters else f"{text[:head]}…{text[head + 1 - letters :]}"


def say_stopping() -> None:
    """Says on a terminal that a signal was heard, and shows the cursor, which a bar hides.

    A second signal may kill the process before the bar can end.
    """
    if sys.stderr is not None and sys.stderr.isatty():
        # Past `sys.stderr`, whose lock the code that was interrupted may hold.
        line = (
            "\r\x1b[K\x1b[?25hStopping once the step, batch or compilation in progress is done.\n"
        )
        os.write(sys.stderr.fileno(), line.encode())


def track_text(
    texts: Iterable[T],
    title: str,
    characters: int,
    size: Callable[[Any], int] = len,
    *,
    stream: TextIO | None = None,
    interval: float = 10.0,
) -> Iterator[T]:
    """Passes texts on, and reports now and then how far the pass has come, how fast it is, and the time left.

    Args:
      texts: what is passed on: texts, or finished parts of a corpus.
      title: what is done with them, for example "learning the vocabulary".
      characters: the characters, or bytes, in all texts; 0 if unknown.
      size: gives the characters, or bytes, in one text.
      stream: stderr if None.
      interval: seconds between two lines; a shorter pass prints none.
    """
    stream = sys.stderr if stream is None else stream
    done, began = 0, time.monotonic()
    due = began + interval
    for text in texts:
        yield text
        done += size(text)
        now = time.monotonic()
        if now < due:
            continue
        due, seconds = now + interval, now - began
        whole = f" of {characters / 1e6:,.0f}" if characters else ""
        left = (
            f", {_clock(seconds * (characters - done) / done)} left" if done and characters else ""
        )
        stream.write(
            f"{title}: {done / 1e6:,.0f}{whole} MB, {done / 1e6 / seconds:.1f} MB/s, "
            f"{_clock(seconds)} elapsed{left}\n"
        )
        stream.flush()


def _text(values: Values) -> str:
    parts = [f"loss {values['loss']:#.5g}"] if "loss" in values else []
    if "tokens_per_second" in values:
        parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    if "data_wait" in values:
        parts.append(f"{1e3 * values['data_wait']:.1f} ms wait for data")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
