"""Checkpoint metadata: what was saved, with a digest of every leaf; written on save and verified on read."""

import contextlib
import json
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp

from sdtt_jax.checkpoints.digests import canonical_sha256, describe
from sdtt_jax.errors import CheckpointError, ConfigError, MismatchError
from sdtt_jax.parallel import processes

FORMAT_VERSION = 1
T = TypeVar("T")


class DamagedError(Exception):
    """A checkpoint whose content differs from what was saved."""


def signed(metadata: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON that is stored: metadata, dtype, shape and digest of every leaf, and a SHA-256 over both.

    Raises:
      CheckpointError: a leaf is not finite; `ConfigError` as of `plain`.
    """
    content = {"format": FORMAT_VERSION, "meta": plain(metadata), "leaves": describe(leaves)}
    return content | {"sha256": canonical_sha256(content)}


def plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata as they are read again (tuples become lists); `ConfigError` if they are not JSON-ready."""
    try:
        return dict(json.loads(json.dumps(dict(metadata))))
    except TypeError as error:
        raise ConfigError(f"metadata: {error}; give numbers, texts, lists and mappings.") from None


def verified(content: Any, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(metadata, leaves)` of the JSON that `signed` made.

    Raises:
      DamagedError: the JSON was altered, or never had this form.
      MismatchError: the JSON has another format version; the message names `path`.
    """
    try:
        rest = dict(content)
        sha256 = rest.pop("sha256")
        version, metadata, leaves = rest["format"], dict(rest["meta"]), dict(rest["leaves"])
    except (TypeError, ValueError, KeyError) as error:
        raise DamagedError(f"its metadata do not have the expected form: {brief(error)}") from error
    if sha256 != canonical_sha256(rest):
        raise DamagedError("its metadata were altered")
    if version != FORMAT_VERSION:
        raise MismatchError(
            f"Checkpoint {path} has format {version}; this version reads format {FORMAT_VERSION}; use "
            "the version that wrote it."
        )
    # The hash detects accidents; metadata that somebody forged have a valid hash.
    for name, entry in leaves.items():
        if not _describes_an_array(entry):
            raise DamagedError(f"its metadata describe no array in {name}")
    return metadata, leaves


def _describes_an_array(entry: Any) -> bool:
    """Whether `entry` is `[dtype, shape, digest]`."""
    try:
        dtype, shape, digest = entry
        # Keys have a dtype of JAX's own, "key<fry>", which numpy does not know.
        known = dtype.startswith("key<") or jnp.dtype(dtype) is not None
        sizes = all(type(size) is int and size >= 0 for size in shape)
        return known and sizes and isinstance(digest, str)
    except (TypeError, ValueError, AttributeError):
        return False


def require_same_leaves(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], path: Path, *, typed: bool = True
) -> None:
    """Checks that a checkpoint, at `path`, has the leaves of a model, and their dtypes and shapes if `typed`.

    `stored` holds `[dtype, shape, digest]` of every leaf by path, and `wanted` every leaf of the model.

    Raises:
      MismatchError: naming the first leaf that is missing, extra, or of another dtype or shape.
    """
    for name in sorted(set(stored) | set(wanted)):
        if name not in stored:
            raise MismatchError(f"{path} is a checkpoint of another model: it has no {name}.")
        if name not in wanted:
            raise MismatchError(
                f"{path} is a checkpoint of another model: it has {name}, which this model lacks."
            )
        if not typed:
            continue
        there = (stored[name][0], tuple(stored[name][1]))
        here = (str(wanted[name].dtype), tuple(wanted[name].shape))
        if there != here:
            raise MismatchError(
                f"{path} is a checkpoint of another model: its {name} is "
                f"{there[0]}{list(there[1])}, this model's is {here[0]}{list(here[1])}."
            )


def require_same_state(
    step: int, leaves: Mapping[str, Any], latest: Path, read: Callable[[], Mapping[str, Any]]
) -> None:
    """Checks that the latest checkpoint, whose leaves `read` describes, is the state to be saved.

    Raises:
      CheckpointError: it is another one, after which Orbax would skip every save up to its step.
    """
    with contextlib.suppress(DamagedError):
        if latest.name == str(step) and read() == describe(leaves):
            return
    raise CheckpointError(
        f"{latest.parent} holds step {latest.name} of another training, so step {step} of this one cannot be "
        "saved there; restore the latest checkpoint and go on from it, or give another directory."
    )


def agreed(read: Callable[[], T]) -> T:
    """`read()`, or `DamagedError` on all processes if it failed on any, so that all fall back to the same
    checkpoint and none waits for another in a collective."""
    error = None
    try:
        found = read()
    except DamagedError as caught:
        error = caught
    if processes.anywhere(error is not None):
        raise error or DamagedError("another process cannot read it")
    return found


def brief(error: Exception) -> str:
    """An error in one line; Orbax puts whole trees into its messages."""
    text = str(error) or "no message"
    # TensorStore says what the system said last, after long paths.
    if system := re.search(r"([^:]+) \[os_error_code=", text):
        text = f"{system[1].strip()}: {text}"
    text = textwrap.shorten(text, 160, placeholder=" …")
    return f"{type(error).__name__}: {text}"
