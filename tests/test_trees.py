"""Trees as flat tables: each way undoes the other."""

from sdtt_jax.trees import flat_leaves, nested


def test_nested_undoes_flat_leaves():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert nested(flat_leaves(tree)) == tree
