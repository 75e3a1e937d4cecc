"""Trees as flat tables: each way undoes the other."""

import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.trees import flat_leaves, nested


def test_nested_undoes_flat_leaves():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert nested(flat_leaves(tree)) == tree


def test_no_leaf_is_lost_because_another_has_its_path():
    """The first one was: it was neither saved nor counted."""
    with pytest.raises(ConfigError, match="Two leaves have the path a/b; give one another name"):
        flat_leaves({"a/b": 1, "a": {"b": 2}})
