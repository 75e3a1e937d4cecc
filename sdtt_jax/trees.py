"""Trees of arrays as flat tables by readable path, and back."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from sdtt_jax.config import require
from sdtt_jax.typing import Tree


def leaf_name(path: tuple[Any, ...]) -> str:
    """Readable path of a leaf: `blocks/mlp/up/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flat_leaves(tree: Tree) -> dict[str, Any]:
    """Leaves by path, `blocks/mlp/up/kernel`, in path order.

    Raises:
      ConfigError: two have the same path, as in `{"a/b": x, "a": {"b": y}}`.
    """
    leaves: dict[str, Any] = {}
    for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = leaf_name(place)
        require(path not in leaves, f"Two leaves have the path {path}; give one another name.")
        leaves[path] = leaf
    return dict(sorted(leaves.items()))


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat_leaves`: nested dicts, the form in which trees of any kind are stored."""
    return traverse_util.unflatten_dict(leaves, sep="/")
