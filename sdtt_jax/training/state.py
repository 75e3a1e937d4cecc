"""The train state: everything that a step reads and writes, and nothing else."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sdtt_jax.parallel.mesh import RULES, Rules, mesh_of, use_mesh
from sdtt_jax.parallel.placement import mirror_shardings, replicated, tree_shardings, unbox

Tree = Any


class TrainState(flax.struct.PyTreeNode):
    """State of one stage or round of training.

    Attributes:
      step: `[] int32`, steps taken in this stage or round, rejected ones included; names the batch
        and keys.
      params: parameters, a nested dict.
      opt_state: the optimizer's.
      ema_params: exponential moving average of `params`, or None.
      ema_count: `[] int32`, updates that the average has seen (it may outlive a round).
      context: arrays that the loss reads and nothing trains, e.g. teacher parameters, dt, round; {}
        if none.
      rejected: `[] int32`, steps whose update was not finite (or spiked) and was dropped.
      rejected_in_a_row: `[] int32`, those of them since the last good step.
      loss_mean: `[] float32`, running mean of the loss of accepted steps, or None where nothing looks
        for spikes.
    """

    step: jax.Array
    params: Tree
    opt_state: Tree
    ema_params: Tree
    ema_count: jax.Array
    context: Tree
    rejected: jax.Array
    rejected_in_a_row: jax.Array
    loss_mean: Tree = None


def init_state(
    init_fn: Callable[[], Tree],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Rules = RULES,
    context: Tree = None,
    *,
    ema: bool = False,
    loss_mean: bool = False,
) -> TrainState:
    """A fresh state, made on the mesh piece by piece: no device ever holds the whole of it.

    Shapes come first (`eval_shape`), then shardings (logical names through `rules` for parameters;
    whatever mirrors them, such as moments, average and a teacher in the context, is placed like
    them), and then one compiled init writes each piece where it belongs.

    Args:
      init_fn: returns the boxed parameters, e.g. `functools.partial(model.init, key)`.
      optimizer: its `init` makes `opt_state`.
      mesh, rules: where things go.
      context: untrained arrays; copied, so the caller's stay valid when the state is donated.
      ema: keep a moving average, which starts at the parameters.
      loss_mean: keep one of the loss.

    Returns:
      `TrainState` at step 0.
    """
    context = _as_arrays(context)
    shardings = state_shardings(
        init_fn, optimizer, mesh, rules, context, ema=ema, loss_mean=loss_mean
    )
    build = _builder(lambda: unbox(init_fn()), optimizer, ema, loss_mean)
    with use_mesh(mesh, rules):
        placed = _copy(context, shardings.context)
        state = jax.jit(build, out_shardings=shardings.replace(context={}))()
    return state.replace(context=placed)


def state_from_params(
    params: Tree,
    optimizer: optax.GradientTransformation,
    *,
    context: Tree = None,
    ema: bool = False,
    loss_mean: bool = False,
    ema_params: Tree = None,
    ema_count: jax.Array | int = 0,
    opt_state: Tree = None,
) -> TrainState:
    """A state at step 0 that starts from parameters which are on the mesh already (a new round).

    Everything is copied: a donated state may not share a buffer with its own context or the caller.

    Args:
      params: nested dict of placed arrays.
      optimizer: its `init` makes `opt_state` unless one is given.
      context: untrained arrays.
      ema, loss_mean: keep a moving average of the parameters, of the loss.
      ema_params, ema_count: an average to go on with; it starts at `params` if None.
      opt_state: an optimizer state to go on with; fresh if None.
    """
    mesh = mesh_of(params)
    context = _as_arrays(context)
    placement = jax.tree.map(lambda x: x.sharding, params)
    abstract = jax.eval_shape(lambda: params)
    shardings = _state_shardings(abstract, placement, optimizer, mesh, context, ema, loss_mean)
    state = _builder(lambda p: p, optimizer, ema, loss_mean)
    with use_mesh(mesh):
        fresh = jax.jit(
            lambda p: jax.tree.map(jnp.copy, state(p)), out_shardings=shardings.replace(context={})
        )(params)
        updates: dict[str, Any] = {"context": _copy(context, shardings.context)}
        if ema and ema_params is not None:
            updates["ema_params"] = _copy(ema_params, shardings.ema_params)
            updates["ema_count"] = _copy(jnp.int32(ema_count), shardings.ema_count)
        if opt_state is not None:
            updates["opt_state"] = _copy(opt_state, shardings.opt_state)
    return fresh.replace(**updates)


def state_shardings(
    init_fn: Callable[[], Tree],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Rules = RULES,
    context: Tree = None,
    *,
    ema: bool = False,
    loss_mean: bool = False,
) -> TrainState:
    """Shardings of `init_state`'s result, in its structure, without making any array."""
    boxed = jax.eval_shape(init_fn)
    placement = tree_shardings(boxed, rules, mesh)
    return _state_shardings(unbox(boxed), placement, optimizer, mesh, context, ema, loss_mean)


def abstract_state(
    init_fn: Callable[[], Tree],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Rules = RULES,
    context: Tree = None,
    *,
    ema: bool = False,
    loss_mean: bool = False,
) -> TrainState:
    """`init_state`'s result as `jax.ShapeDtypeStruct`s with shardings, to restore into."""
    shardings = state_shardings(
        init_fn, optimizer, mesh, rules, context, ema=ema, loss_mean=loss_mean
    )
    build = _builder(lambda: unbox(init_fn()), optimizer, ema, loss_mean)
    shapes = jax.eval_shape(build).replace(context=_abstract(context))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def abstract_like(state: TrainState) -> TrainState:
    """The `jax.ShapeDtypeStruct` tree, with shardings, of a state that exists."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def ema_decay_at(count: jax.Array | int, decay: float) -> jax.Array:
    """Decay of the average's update number `count` = 1, 2, …: `min(decay, (1 + n) / (10 + n))`.

    The ramp lets the average forget the random start (the SDTT reference code uses the same).
    """
    n = jnp.asarray(count, jnp.float32)
    return jnp.minimum(decay, (1 + n) / (10 + n))


def _builder(
    make_params: Callable[..., Tree], optimizer: Any, ema: bool, loss_mean: bool
) -> Callable[..., TrainState]:
    def build(*args: Any) -> TrainState:
        params = make_params(*args)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            ema_params=jax.tree.map(jnp.copy, params) if ema else None,
            ema_count=jnp.zeros((), jnp.int32),
            context={},
            rejected=jnp.zeros((), jnp.int32),
            rejected_in_a_row=jnp.zeros((), jnp.int32),
            loss_mean=jnp.zeros((), jnp.float32) if loss_mean else None,
        )

    return build


def _state_shardings(
    params: Tree,
    placement: Tree,
    optimizer: Any,
    mesh: Mesh,
    context: Tree,
    ema: bool,
    loss_mean: bool,
) -> TrainState:
    def mirror(tree: Tree) -> Tree:
        return mirror_shardings(tree, placement, params, mesh)

    one: Any = replicated(mesh)
    return TrainState(
        step=one,
        params=placement,
        opt_state=mirror(jax.eval_shape(optimizer.init, params)),
        ema_params=placement if ema else None,
        ema_count=one,
        context=mirror(_abstract(context)),
        rejected=one,
        rejected_in_a_row=one,
        loss_mean=one if loss_mean else None,
    )


def _as_arrays(tree: Tree) -> Tree:
    return jax.tree.map(
        lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), {} if tree is None else tree
    )


def _abstract(tree: Tree) -> Tree:
    return jax.eval_shape(lambda t: t, {} if tree is None else tree)


def _copy(tree: Tree, shardings: Tree) -> Tree:
    moved = jax.device_put(tree, shardings)
    return jax.jit(lambda t: jax.tree.map(jnp.copy, t), out_shardings=shardings)(moved)
