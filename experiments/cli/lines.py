"""JSON lines, written to the file that --output names as they are found."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from experiments.cli.output import writing


@contextlib.contextmanager
def json_lines(file: Path | None) -> Iterator[Callable[[Any], None]]:
    """A function that adds a line of JSON to a file; None is for no file.

    The file is opened at the first line, which replaces what it held. If there is an error before that line,
    the file is not changed; if there are no lines and no error, it is emptied.
    """
    if file is None:
        yield lambda _: None
        return

    @functools.cache
    def output() -> IO[str]:
        return file.open("w", encoding="utf-8")

    def write(content: Any) -> None:
        with writing(file):
            output().write(json.dumps(content) + "\n")
            output().flush()

    try:
        yield write
        with writing(file):
            output()
    finally:
        if output.cache_info().currsize:
            with writing(file):
                output().close()
