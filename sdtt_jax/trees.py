"""Trees of arrays as flat tables by readable path, and back."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from sdtt_jax.typing import Tree


def leaf_name(path: tuple[Any, ...]) -> str:
    """Readable path of a leaf: `blocks/mlp/up/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flat_leaves(tree: Tree) -> dict[str, Any]:
    """Leaves by path, `blocks/mlp/up/kernel`, in path order."""
    leaves = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return dict(sorted(leaves.items()))


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat_leaves`: nested dicts, the form in which trees of any kind are stored."""
    return traverse_util.unflatten_dict(leaves, sep="/")
