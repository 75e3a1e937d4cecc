"""Metrics of training: one JSON object per line, and TensorBoard beside it."""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from sdtt_jax.errors import DataError
from sdtt_jax.parallel import processes
from sdtt_jax.paths import as_path, is_remote, parse_json, text_lines, write_text

FILE = "metrics.jsonl"
# Time between two writes of the file in a bucket; a kill loses the lines since the last.
REMOTE_SECONDS = 30.0


class MetricsWriter:
    """Appends the metrics of one stage and round to `DIR/metrics.jsonl` and to `DIR/tensorboard/STAGE_ROUND`.

    Only process 0 writes. Nothing can be appended to an object in a bucket: there the file is written
    whole, at most every `REMOTE_SECONDS`, and there is no TensorBoard. Use as a context manager.

    Args:
      directory: the run's directory.
      tags: what every line begins with, `{"stage": "distill", "round": 1}`.
      start_step: the step at which the training starts or goes on. Later lines of the same tags are
        dropped: a run wrote them that died after its last checkpoint, and they will be written again.
    """

    def __init__(
        self, directory: str | os.PathLike[str], tags: Mapping[str, Any], start_step: int = 0
    ):
        self.path = as_path(directory) / FILE
        self._tags = dict(tags)
        self._file: _Lines | TextIO | None = None
        self._board: Any = None
        if not processes.is_first():
            return
        self._drop_after(start_step)
        if is_remote(self.path):
            self._file = _Lines(self.path)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        name = "_".join(f"{v:02d}" if isinstance(v, int) else str(v) for v in tags.values())
        board = self.path.parent / "tensorboard" / name
        # Takes a quarter of a second to import, which programs that do not train can do without.
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

        self._board = SummaryWriter(str(board), purge_step=start_step + 1)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line, `{**tags, "step": step, **values}`, on disk when this returns."""
        if self._file is None:
            return
        record = self._tags | {"step": step} | {k: _json_number(v) for k, v in values.items()}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def _drop_after(self, start_step: int) -> None:
        if not self.path.exists():
            return
        kept = [
            record
            for record in read_metrics(self.path)
            if record.get("step", 0) <= start_step
            or any(record.get(name) != value for name, value in self._tags.items())
        ]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))


class _Lines:
    """Lines of an object in a bucket, which is written whole every `REMOTE_SECONDS`."""

    def __init__(self, path: Path):
        self._path = path
        self._text = path.read_text(encoding="utf-8") if path.exists() else ""
        self._written = time.monotonic()

    def write(self, line: str) -> None:
        self._text += line

    def flush(self) -> None:
        if time.monotonic() - self._written > REMOTE_SECONDS:
            self.close()

    def close(self) -> None:
        write_text(self._path, self._text)
        self._written = time.monotonic()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line that was cut short by a kill is left out."""
    records = []
    for where, line in text_lines(path):
        with contextlib.suppress(DataError):
            records.append(parse_json(line, where))
    return records


def _json_number(value: float) -> float | None:
    """NaN and infinities have no JSON form; they become null."""
    number = float(value)
    return number if abs(number) < float("inf") else None
