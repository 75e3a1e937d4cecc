"""The facts stored beside a checkpoint's arrays: what they say, that they are whole, and whom they suit."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from sdtt_jax.checkpoints.digests import canonical_sha256, describe
from sdtt_jax.errors import MismatchError

FORMAT_VERSION = 1


class DamagedError(Exception):
    """A stored checkpoint that does not read back as it was written."""


def sealed(meta: dict[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored: `meta`, the type, shape and digest of every leaf, and a SHA-256 over both.

    Raises:
      CheckpointError: a leaf is not finite.
    """
    content = {"format": FORMAT_VERSION, "meta": meta, "leaves": describe(leaves)}
    return content | {"sha256": canonical_sha256(content)}


def read_meta(content: Any, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(meta, leaves)` of what `sealed` made, checked.

    Args:
      content: the JSON that was stored.
      path: named in errors.

    Raises:
      DamagedError: it was altered, or is not of this form at all.
      MismatchError: it is of another format.
    """
    try:
        rest = dict(content)
        seal = rest.pop("sha256")
        version, meta, table = rest["format"], dict(rest["meta"]), dict(rest["leaves"])
    except (TypeError, ValueError, KeyError) as error:
        raise DamagedError(f"its meta file is not of the expected form: {brief(error)}") from error
    if seal != canonical_sha256(rest):
        raise DamagedError("its meta file was altered")
    if version != FORMAT_VERSION:
        raise MismatchError(
            f"Checkpoint {path} has format {version}; this version reads format {FORMAT_VERSION}."
        )
    # The seal finds accidents; a file that somebody made on purpose has a good one.
    for name, entry in table.items():
        if not _is_description(entry):
            raise DamagedError(f"its meta file describes no array in {name}")
    return meta, table


def _is_description(entry: Any) -> bool:
    """Whether this is `[dtype, shape, digest]`."""
    try:
        dtype, shape, digest = entry
        # Keys have a dtype of JAX's own, "key<fry>", which numpy does not know.
        known = dtype.startswith("key<") or jnp.dtype(dtype) is not None
        sizes = all(type(size) is int and size >= 0 for size in shape)
        return known and sizes and isinstance(digest, str)
    except (TypeError, ValueError, AttributeError):
        return False


def compare(
    table: Mapping[str, Any], wanted: Mapping[str, Any], shapes: Mapping[str, Any], path: Path
) -> None:
    """Checks that a checkpoint has the leaves of a model.

    Args:
      table: `leaves` of `read_meta`.
      wanted: something for every leaf of the model, by path.
      shapes: a `jax.ShapeDtypeStruct` for each of them, or None where any type will do.
      path: named in errors.

    Raises:
      MismatchError: naming the first leaf that is missing, or of another type or shape.
    """
    for name in sorted(set(table) | set(wanted)):
        if name not in table:
            raise MismatchError(f"{path} is a checkpoint of another model: it has no {name}.")
        if name not in wanted:
            raise MismatchError(f"{path} is a checkpoint of another model: only it has {name}.")
        if shapes[name] is None:
            continue
        stored = (table[name][0], tuple(table[name][1]))
        asked = (str(shapes[name].dtype), tuple(shapes[name].shape))
        if stored != asked:
            raise MismatchError(
                f"{path} is a checkpoint of another model: its {name} is "
                f"{stored[0]}{list(stored[1])}, this model's is {asked[0]}{list(asked[1])}."
            )


def brief(error: Exception) -> str:
    """An error in one line; Orbax puts whole trees into its messages."""
    text = textwrap.shorten(str(error) or "no message", 160, placeholder=" …")
    return f"{type(error).__name__}: {text}"
