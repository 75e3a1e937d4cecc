"""Fused head and loss at selected positions, without logits of all positions, `[batch * length, vocab]`.

Logits, loss and gradient of a chunk of positions are computed together and the logits discarded; only the
gradients are kept for the backward pass, `[batch, length, embed]` and the head's own. Nothing is recomputed,
because the loss is a scalar: its cotangent is a factor.

Both functions take the loss as `loss_fn(logits [n, vocab], per_row, *shared) -> [n]`: `per_row` is a tree of
arrays `[n, …]`, rows of the given arrays `[batch, length, …]`, and `shared` are constants that all rows see,
for example the parameters of a teacher's head. A position may have several states,
`hidden: [batch, length, …, embed]`: the loss then sees their logits at once, `[n, …, vocab]`.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdtt_jax.interface import WithHead
from sdtt_jax.ops.rows import Chunks, map_and_sum, map_selected
from sdtt_jax.parallel.mesh import vary_alike
from sdtt_jax.typing import Hidden, PerToken, Positions, Tree

LossFn = Callable[..., jax.Array]

# With a quarter of the positions per chunk, half a chunk is wasted on average: an eighth of the head's work.
# At 50k tokens the size of a chunk is what caps it, not this.
CHUNKS = Chunks(scope="loss_rows", parts=4)


def selected_losses(
    network: WithHead,
    params: Tree,
    loss_fn: LossFn,
    hidden: Hidden,
    selected: Positions,
    per_row: Tree,
    shared: tuple[Tree, ...] = (),
) -> jax.Array:
    """The loss at every selected position and 0 elsewhere, values only.

    For evaluation; under `jit` differentiating it raises (a loop of unknown length has no reverse mode). To
    train, use `weighted_loss`.

    Args:
      network, params: the head.
      loss_fn: `(logits, per_row, *shared) -> [n]`, or `[n, …]` for several values of each position.
      hidden: `[batch, length, embed]`.
      selected: `[batch, length]` bool.
      per_row: tree of `[batch, length, …]`, what `loss_fn` needs of each row.
      shared: what `loss_fn` needs for all rows.

    Returns:
      `[batch, length]`, or `[batch, length, …]`; float32, or the dtype of `hidden` if that is wider.
    """

    def losses(rows: Tree, shared: Tree) -> jax.Array:
        (hidden, per_row), (head, constants) = rows, shared
        loss = loss_fn(network.logits(head, hidden), per_row, *constants)
        return loss.astype(_loss_dtype(hidden))

    head = network.head_params(params)
    columns = _columns(network, head, hidden)
    rows, everywhere = (hidden, per_row), (head, shared)
    return map_selected(losses, selected, rows, everywhere, columns, CHUNKS)


def weighted_loss(
    network: WithHead,
    params: Tree,
    loss_fn: LossFn,
    hidden: Hidden,
    weights: PerToken,
    per_row: Tree,
    shared: tuple[Tree, ...] = (),
) -> tuple[jax.Array, jax.Array]:
    """`sum(weights * loss_fn(network.logits(params, hidden), …))`, and the losses that are summed.

    Args:
      network, params: the head, differentiable with respect to its parameters.
      loss_fn: `(logits, per_row, *shared) -> [n]`, the loss of each row.
      hidden: `[batch, length, embed]`; differentiable.
      weights: `[batch, length]` float32; a position of weight 0 costs nothing. No gradient.
      per_row: tree of `[batch, length, …]`, what `loss_fn` needs of each row. No gradient.
      shared: what `loss_fn` needs for all rows. No gradient.

    Returns:
      `(total, losses)`: `[]` float32, differentiable with respect to `params` and `hidden`, and
      `[batch, length]` float32 unweighted (0 where the weight is 0), through which no gradient flows.
    """
    arrays = vary_alike(network.head_params(params), hidden, weights, per_row, shared)
    return _weighted_loss(network, loss_fn, *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weighted_loss(
    network: WithHead,
    loss_fn: LossFn,
    head: Tree,
    hidden: Hidden,
    weights: PerToken,
    per_row: Tree,
    shared: tuple[Tree, ...],
) -> tuple[jax.Array, jax.Array]:
    losses = selected_losses(network, head, loss_fn, hidden, weights != 0, per_row, shared)
    return (losses * weights).sum(), losses


def _forward(
    network: WithHead,
    loss_fn: LossFn,
    head: Tree,
    hidden: Hidden,
    weights: PerToken,
    per_row: Tree,
    shared: tuple[Tree, ...],
) -> tuple[tuple[jax.Array, jax.Array], tuple[Tree, jax.Array]]:
    """The results of `weighted_loss`, and the gradients of the total with respect to head and hidden."""

    def losses_and_gradients(rows: Tree, shared: Tree) -> tuple[Tree, Tree]:
        (hidden, weight, per_row), (head, constants) = rows, shared

        def weighted(head: Tree, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss = loss_fn(network.logits(head, hidden), per_row, *constants)
            return (loss * weight).sum(), loss

        (total, loss), (d_head, d_hidden) = jax.value_and_grad(
            weighted, argnums=(0, 1), has_aux=True
        )(head, hidden)
        dtype = _loss_dtype(hidden)
        # Chunks are added up in float32: in bfloat16, the gradient of 128 of them would be 1 % off.
        d_head = jax.tree.map(lambda g: g.astype(_loss_dtype(g)), d_head)
        return (loss.astype(dtype), d_hidden), (total.astype(dtype), d_head)

    columns = _columns(network, head, hidden)
    rows, everywhere = (hidden, weights, per_row), (head, shared)
    (losses, d_hidden), (total, d_head) = map_and_sum(
        losses_and_gradients, weights != 0, rows, everywhere, columns, CHUNKS
    )
    d_head = jax.tree.map(lambda g, like: g.astype(like.dtype), d_head, head)
    return (total, losses), (d_head, d_hidden)


def _backward(
    network: WithHead,
    loss_fn: LossFn,
    gradients: tuple[Tree, jax.Array],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple:
    del network, loss_fn
    # In float32: bfloat16 would round the factor, such as 1 over the number of tokens, by up to 0.4 %.
    d_head, d_hidden = jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), gradients)
    return d_head, d_hidden, None, None, None


_weighted_loss.defvjp(_forward, _backward)


def _columns(network: WithHead, head: Tree, hidden: Hidden) -> int:
    """The number of logits of one position, over all its states: the width of the widest array of a row."""
    return math.prod(jax.eval_shape(network.logits, head, hidden[:1]).shape[2:])


def _loss_dtype(like: jax.Array) -> jnp.dtype:
    """The wider of float32 and the dtype of an array, such as the hidden states."""
    return jnp.promote_types(like.dtype, jnp.float32)
