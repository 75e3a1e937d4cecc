"""Metrics of training: one JSON object per line, and TensorBoard."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from sdtt_jax.errors import DataError
from sdtt_jax.formats import parse_json
from sdtt_jax.parallel import processes
from sdtt_jax.paths import as_path, is_remote, with_path_in_errors, write_text

LOG = logging.getLogger(__name__)
FILE = "metrics.jsonl"
# Time between two writes of the file in a bucket; a kill loses the lines since the last, or since `keep`.
REMOTE_SECONDS = 30.0


class MetricsWriter:
    """Appends the metrics of one stage and round to `DIR/metrics.jsonl` and to `DIR/tensorboard/STAGE_ROUND`.

    Only process 0 writes. Nothing can be appended to an object in a bucket: there the file is written
    whole, every `REMOTE_SECONDS` and when `keep` is called, and there is no TensorBoard. Use as a context
    manager.

    Args:
      directory: the run's directory.
      tags: the fields that every line begins with, `{"stage": "distill", "round": 1}`.
      start_step: the step at which the training starts or continues. Later lines with the same tags
        are dropped: a run that died after its last checkpoint wrote them, and they will be written
        again. `seconds` go on from the last line that is kept.
    """

    def __init__(
        self, directory: str | os.PathLike[str], tags: Mapping[str, Any], start_step: int = 0
    ):
        self.path = as_path(directory) / FILE
        self._tags, self._seconds = dict(tags), 0.0
        self._file: _Lines | TextIO | None = None
        self._board: _Board | None = None
        if not processes.is_first():
            return
        for record in drop_after(self.path, tags, start_step):
            if _has(record, tags):
                self._seconds = record.get("seconds") or 0.0
        if is_remote(self.path):
            self._file = _Lines(self.path)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        name = "_".join(f"{v:02d}" if isinstance(v, int) else str(v) for v in tags.values())
        self._board = _Board(self.path.parent / "tensorboard" / name, start_step)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: Any) -> None:
        with with_path_in_errors(self.path):
            if self._file is not None:
                self._file.close()
            if self._board is not None:
                self._board.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the line `{**tags, "step": step, **values}`; a local file has it when this returns."""
        if self._file is None:
            return
        if "seconds" in values:
            values = {**values, "seconds": values["seconds"] + self._seconds}
        record = self._tags | {"step": step} | {k: _json_number(v) for k, v in values.items()}
        with with_path_in_errors(self.path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            if self._board is not None:
                self._board.write(step, values)

    def keep(self) -> None:
        """Puts the lines so far where a kill does not lose them; call it before the state is saved."""
        if isinstance(self._file, _Lines):
            with with_path_in_errors(self.path):
                self._file.close()


class _Board:
    """Scalars for TensorBoard, each on disk when `write` returns.

    tensorboardX's `SummaryWriter` would hand them to a thread. A full disk ends that thread, and later writes
    would then wait for it for ever.
    """

    def __init__(self, directory: Path, start_step: int):
        # Imported only here: it takes a quarter of a second, which programs that do not train are spared.
        from tensorboardX import event_file_writer, summary  # type: ignore[import-untyped]
        from tensorboardX.proto import event_pb2  # type: ignore[import-untyped]

        self._event, self._scalar = event_pb2.Event, summary.scalar
        directory.mkdir(parents=True, exist_ok=True)
        # The file is named after the second in which it begins; within one, a run may stop and begin again.
        own = f".{os.getpid()}.{start_step}"
        self._events = event_file_writer.EventsWriter(str(directory / "events"), own)
        # Hides the events that a killed run wrote after its last checkpoint.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._put(start_step + 1, session_log=start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._put(step, summary=self._scalar(name, value))
        self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _put(self, step: int, **content: Any) -> None:
        self._events.write_event(self._event(step=step, wall_time=time.time(), **content))


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


def drop_after(path: Path, tags: Mapping[str, Any], step: int) -> list[dict[str, Any]]:
    """Drops the lines with these tags of steps after `step` from a file of records; returns the others.

    A run that died after its last checkpoint wrote them, or one that has begun anew with other settings.
    """
    if not path.exists():
        return []
    kept = [r for r in read_metrics(path) if not _has(r, tags) or r.get("step", 0) <= step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    return kept


def _has(record: Mapping[str, Any], tags: Mapping[str, Any]) -> bool:
    return all(record.get(name) == value for name, value in tags.items())


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line that was cut short by a kill is left out.

    Other lines that cannot be read are left out too, with a warning.
    """
    *lines, last = as_path(path).read_bytes().decode("utf-8", errors="replace").split("\n")
    records, unread = [], []
    for number, line in enumerate(lines, start=1):
        if (record := _record(line)) is not None:
            records.append(record)
        elif line.strip():
            unread.append(number)
    if unread:
        LOG.warning("%s: skipped unreadable lines: %s", path, str(unread)[1:-1])
    record = _record(last)
    return records if record is None else [*records, record]


def _record(line: str) -> dict[str, Any] | None:
    with contextlib.suppress(DataError):
        record = parse_json(line, "")
        if isinstance(record, dict):
            numbers = record.get("step", 0), record.get("seconds") or 0.0
            return record if all(isinstance(n, int | float) for n in numbers) else None
    return None


def _json_number(value: float) -> float | None:
    """NaN and infinities have no JSON form; they become null."""
    number = float(value)
    return number if abs(number) < float("inf") else None
