"""Flags from the fields of a dataclass: one for each, with its default and the help in its metadata."""

import dataclasses
import math
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from absl import flags

from sdtt_jax.config import number, require
from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.diffusion.decoders.serving import HELPERS
from sdtt_jax.networks.config import COMPUTE_DTYPES

T = TypeVar("T")
# A flag that is defined here belongs to the module that asks for it, and is listed in that module's --help.
flags.disclaim_key_flags()
_DEFINE: dict[type, Any] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def define_checkpoint() -> flags.FlagHolder[str | None]:
    """Defines the flag that names a model."""
    return flags.DEFINE_string(
        "checkpoint",
        None,
        "A run (its last finished round, or else its teacher), a round, a teacher, a judge or a final folder "
        "(local or gs://); a .safetensors or .gguf file or its folder; a repository of the hub, "
        "OWNER/NAME[@REVISION]; or smollm2.",
    )


def define_compute_dtype() -> flags.FlagHolder[str | None]:
    """Defines the flag that names the dtype in which a model computes."""
    return flags.DEFINE_string(
        "compute_dtype",
        None,
        f"Dtype to compute in: {', '.join(COMPUTE_DTYPES)}; by default that of training.",
    )


def define_helper() -> flags.FlagHolder[str | None]:
    """Defines the flag that names the second model of a decoder that needs one."""
    return flags.DEFINE_string(
        "helper",
        None,
        "Second model, named as for --checkpoint: for the modes speculative (a teacher or causal model), "
        "energy (a causal model), staged (a denoiser) and skeleton (a causal model).",
    )


def require_helper(modes: Iterable[str], helper: str | None) -> None:
    """Raises `ConfigError` if one of the decoders needs a second model, and --helper names none."""
    for mode in modes:
        kinds = [HELPERS[kind] for kind in parse_mode(mode).decoder.helper]
        require(
            bool(helper) or not kinds,
            f"mode={mode} needs another model, a {' or a '.join(kinds)}; name it with --helper.",
        )


def define_given() -> None:
    """Defines flags for what a published config does not say of its network; see `given_flags`."""
    flags.DEFINE_bool(
        "causal", None, "Read the checkpoint as a causal model, or (--nocausal) as a denoiser."
    )
    flags.DEFINE_bool("shift", None, "The denoiser predicts each token at the position before it.")
    flags.DEFINE_integer("mask_id", None, "Id of the denoiser's MASK token.")


def given_flags(**more: Any) -> dict[str, Any]:
    """The values of the flags that `define_given` defines, and `more`, as keyword arguments of `load`."""
    return {name: flags.FLAGS[name].value for name in ("causal", "shift", "mask_id")} | more


def require_used(config: Any, readers: Iterable[tuple[str, bool, str]]) -> None:
    """Raises `ConfigError` for a field that would change nothing, unless it has its default.

    Args:
      config: a dataclass with a flag for each field.
      readers: what reads some fields, as one would ask for it; whether that is asked for; the fields' names,
        separated by spaces.
    """
    for what, asked, names in readers:
        for name in names.split():
            require(
                asked or getattr(config, name) == getattr(type(config), name),
                f"--{name} is for {what}; add that, or leave it out.",
            )


def show_in_help(*names: str) -> None:
    """Lists another module's flags in --help, which shows only what a module defines or declares."""
    for name in names:
        flags.declare_key_flag(name)


def define_flags(kind: type) -> None:
    """Defines a flag for every field of a dataclass; a tuple is given as a list separated by commas.

    What a list names twice counts once, and numbers are sorted.
    """
    for field, of, many in _fields(kind):
        text = field.metadata["help"]
        if many:
            flags.DEFINE_list(field.name, [str(value) for value in field.default], text)
        else:
            _DEFINE[of](field.name, field.default, text)


def from_flags(kind: type[T]) -> T:
    """The dataclass that the flags describe; errors name the flag."""
    values: dict[str, Any] = {}
    for field, of, many in _fields(kind):
        value = flags.FLAGS[field.name].value
        values[field.name] = _items(field.name, of, value) if many else value
    return kind(**values)


def _fields(kind: type) -> Iterator[tuple[Any, type, bool]]:
    """The fields of a dataclass, each with its type (a tuple's items') and whether it is a tuple."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        # The first argument of `tuple[int, ...]` and of `int | None`.
        of, *_ = typing.get_args(hint) or (hint,)
        yield field, of, typing.get_origin(hint) is tuple


def _items(name: str, of: type, value: list[str] | None) -> tuple[Any, ...]:
    texts = [text.strip() for text in value or []]
    if of is str:
        return tuple(dict.fromkeys(texts))
    what = "whole number" if of is int else "number"
    for text in texts:
        require(
            _is_number(text, of),
            f"--{name}: {text!r} is not a {what}; give {what}s separated by commas.",
        )
    return tuple(sorted({of(text) for text in texts}))


def _is_number(text: str, of: type) -> bool:
    if of is int:
        return re.fullmatch("-?[0-9]+", text) is not None
    try:
        return math.isfinite(number(float, text))
    except ValueError:
        return False
