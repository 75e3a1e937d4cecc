"""Losses of a linear head at selected positions, fused: `[batch * length, vocab]` never exists.

Logits, loss and gradient of a chunk of positions are computed together and the logits forgotten; what is
kept for the backward pass is the gradient itself, `[batch, length, embed]` and the head's own. That costs
no recomputation, for the loss is a scalar: its cotangent is a factor.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdtt_jax.ops.rows import chunk_size, flatten, fold_selected, over_batch_shards, take_rows
from sdtt_jax.typing import Tree

ApplyHead = Callable[[Tree, jax.Array], jax.Array]
# (logits [n, vocab], whole, rows of the extras [n, …]) -> [n], or [n, …] for `selected_losses`
Compare = Callable[[jax.Array, Tree, Tree], jax.Array]

# With a quarter of the positions per chunk, half a chunk is computed in vain in the mean: an eighth of the
# head's work. What caps a chunk at 50k tokens is its size, not this.
PARTS = 4
# Name of the loop over chunks in profiles and compiled programs.
SCOPE = "loss_rows"


def selected_losses(
    apply_head: ApplyHead,
    compare: Compare,
    head: Tree,
    whole: Tree,
    hidden: jax.Array,
    selected: jax.Array,
    extras: Tree,
) -> jax.Array:
    """The loss at every selected position, and 0 elsewhere: `[batch, length]`, values only.

    For evaluation; differentiating it raises (a loop of unknown length has no reverse mode). To train, use
    `weighted_loss`. Arguments as there, but for `selected: [batch, length]` bool, and `compare` may return
    several values for each position: `[n, …]` gives `[batch, length, …]`.
    """

    def local(mapped: Tree, whole: Tree) -> tuple[jax.Array, tuple[()]]:
        hidden, selected, extras = flatten(mapped)
        head, constants = whole

        def losses_of(hidden: jax.Array, extras: Tree) -> jax.Array:
            return compare(apply_head(head, hidden), constants, extras).astype(_loss_dtype(hidden))

        def body(losses: jax.Array, index: jax.Array) -> jax.Array:
            rows = jax.tree.map(lambda x: take_rows(x, index), (hidden, extras))
            return losses.at[index].set(losses_of(*rows), mode="drop")

        one = jax.eval_shape(losses_of, hidden[:1], jax.tree.map(lambda x: x[:1], extras))
        losses = jnp.zeros((len(selected), *one.shape[1:]), one.dtype)
        size = chunk_size(len(selected), _columns(apply_head, head, hidden), PARTS)
        with jax.named_scope(SCOPE):
            losses = fold_selected(selected, size, body, losses)
        return losses.reshape(*mapped[0].shape[:2], *one.shape[1:]), ()

    return over_batch_shards(local, (hidden, selected, extras), (head, whole))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def weighted_loss(
    apply_head: ApplyHead,
    compare: Compare,
    head: Tree,
    whole: Tree,
    hidden: jax.Array,
    weights: jax.Array,
    extras: Tree,
) -> tuple[jax.Array, jax.Array]:
    """`sum(weights * compare(apply_head(head, hidden)))`, and what is summed.

    Args:
      apply_head: `(head, [n, embed]) -> [n, vocab]` logits.
      compare: `(logits [n, vocab], whole, extras of n rows) -> [n]`, the loss of each row.
      head: the head's parameters; differentiable.
      whole: what `compare` needs for all rows (the teacher's head); a constant, no gradient.
      hidden: `[batch, length, embed]`; differentiable.
      weights: `[batch, length]` float32; a position of weight 0 costs nothing. No gradient.
      extras: tree of `[batch, length, …]`, what `compare` needs of each row. No gradient.

    Returns:
      `(total, losses)`: `[]` float32, differentiable with respect to `head` and `hidden`, and
      `[batch, length]` float32 without weights (0 where the weight is), through which no gradient flows.
    """
    losses = selected_losses(apply_head, compare, head, whole, hidden, weights != 0, extras)
    return (losses * weights).sum(), losses


def _forward(
    apply_head: ApplyHead,
    compare: Compare,
    head: Tree,
    whole: Tree,
    hidden: jax.Array,
    weights: jax.Array,
    extras: Tree,
) -> tuple[tuple[jax.Array, jax.Array], tuple[Tree, jax.Array]]:
    def local(mapped: Tree, whole: Tree) -> tuple[Tree, Tree]:
        hidden, weights, extras = flatten(mapped)
        head, constants = whole

        def body(carry: tuple, index: jax.Array) -> tuple:
            total, d_head, losses, d_hidden = carry
            rows = jax.tree.map(lambda x: take_rows(x, index), extras)
            weight = take_rows(weights, index)

            def chunk(head: Tree, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
                loss = compare(apply_head(head, hidden), constants, rows)
                return (loss * weight).sum(), loss

            (part, loss), (more_head, new_hidden) = jax.value_and_grad(
                chunk, argnums=(0, 1), has_aux=True
            )(head, take_rows(hidden, index))
            return (
                total + part.astype(total.dtype),
                jax.tree.map(jnp.add, d_head, more_head),
                losses.at[index].set(loss.astype(losses.dtype), mode="drop"),
                d_hidden.at[index].set(new_hidden, mode="drop"),
            )

        dtype = _loss_dtype(hidden)
        zeros = jax.tree.map(jnp.zeros_like, head)
        carry = (jnp.zeros((), dtype), zeros, jnp.zeros(weights.shape, dtype))
        size = chunk_size(len(weights), _columns(apply_head, head, hidden), PARTS)
        with jax.named_scope(SCOPE):
            total, d_head, losses, d_hidden = fold_selected(
                weights != 0, size, body, (*carry, jnp.zeros_like(hidden))
            )
        shape = mapped[0].shape
        return (losses.reshape(shape[:2]), d_hidden.reshape(shape)), (total, d_head)

    mapped, sums = over_batch_shards(local, (hidden, weights, extras), (head, whole))
    (losses, d_hidden), (total, d_head) = mapped, sums
    return (total, losses), (d_head, d_hidden)


def _backward(
    apply_head: ApplyHead,
    compare: Compare,
    gradients: tuple[Tree, jax.Array],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple:
    del apply_head, compare
    d_head, d_hidden = jax.tree.map(lambda g: g * cotangents[0].astype(g.dtype), gradients)
    return d_head, None, d_hidden, None, None


weighted_loss.defvjp(_forward, _backward)


def _columns(apply_head: ApplyHead, head: Tree, hidden: jax.Array) -> int:
    return jax.eval_shape(apply_head, head, hidden[:1]).shape[-1]


def _loss_dtype(hidden: jax.Array) -> jnp.dtype:
    """float32, or what the hidden states have, if that is wider."""
    return jnp.promote_types(hidden.dtype, jnp.float32)
