"""How much memory a compiled program needs, and whether that much is free."""

import contextlib
from typing import Any

import jax

from sdtt_jax.errors import UserError
from sdtt_jax.paths import as_path


class TooLargeError(UserError):
    """A program needs more memory than there is."""


def memory_of(compiled: Any) -> dict[str, float] | None:
    """A program's memory in GB according to the compiler; None if the backend does not report it."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return {
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "outputs_gb": memory.output_size_in_bytes / 1e9,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "alias_gb": memory.alias_size_in_bytes / 1e9,
    }


def check_memory(compiled: Any) -> None:
    """Raises `TooLargeError` for a program that does not fit in memory, before it is run.

    Only a CPU is checked: there the system would kill the process, which is the whole benchmark if
    everything is measured in one. Elsewhere an allocation that fails raises an error.
    """
    needed, free = memory_of(compiled), free_gb()
    if needed is None or free is None or jax.default_backend() != "cpu":
        return
    more = needed["outputs_gb"] + needed["temporaries_gb"] - needed["alias_gb"]
    if more > free:
        raise TooLargeError(f"not run: it needs {more:.1f} GB, but only {free:.1f} are free")


def free_gb() -> float | None:
    """Memory that a process may still take; None where the system does not say."""
    free = system_bytes("/proc/meminfo", "MemAvailable")
    return None if free is None else free / 1e9


def system_bytes(file: str, field: str) -> int | None:
    """A figure of memory in one of Linux's files; None where there is no such file or field."""
    with contextlib.suppress(OSError):
        for line in as_path(file).read_text("utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
