"""The train state: everything that a step reads and writes, and nothing else."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sdtt_jax.config import require
from sdtt_jax.parallel.mesh import RULES, check_mesh, use_mesh
from sdtt_jax.parallel.placement import mirror_shardings, tree_shardings, unbox
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.optimizers import make_optimizer, num_updates
from sdtt_jax.trees import flat_leaves
from sdtt_jax.typing import Tree


@contextlib.contextmanager
def in_32_bits() -> Iterator[None]:
    """Turns `jax_enable_x64` off, so that optax's rates stay float32, and strict dtypes, with which it fails.

    A run then resumes with the same bits, whether these flags are set or not.
    """
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


class TrainState(flax.struct.PyTreeNode):
    """State of one stage or round of training.

    Attributes:
      step: `[] int32`, steps taken in this stage or round, rejected ones included; determines the
        batch and keys.
      params: parameters, a nested dict.
      opt_state: the optimizer's state.
      ema_params: exponential moving average of `params`, or None.
      ema_count: `[] int32`, updates that the average has seen (it may outlive a round).
      context: arrays that the loss reads and nothing trains, e.g. teacher parameters, dt, round; {}
        if none.
      rejected: `[] int32`, steps whose update was not finite (or spiked) and was dropped.
      rejected_in_a_row: `[] int32`, steps rejected since the last good one.
      loss_mean: `[] float32`, running mean of the loss of accepted steps, or None if spikes are not
        looked for.
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


@dataclasses.dataclass(frozen=True)
class StateSpec:
    """Makes and describes the states of a training: what they hold, and on which devices.

    Attributes:
      config: the config of the training. A state holds that of its optimizer, an average of the parameters
        if `ema_decay` is not 0, and a mean of the loss if `spike_factor` is not 0.
      mesh: the mesh that the arrays lie on, the parameters by `RULES`. Arrays that mirror parameters, such as
        the moments, the average and a teacher in the context, lie where these do.
    """

    config: TrainConfig
    mesh: Mesh

    def __post_init__(self) -> None:
        check_mesh(self.mesh)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The config's optimizer."""
        return make_optimizer(self.config.optimizer, self.config.num_steps)

    @in_32_bits()
    def init(self, init_fn: Callable[[], Tree], context: Tree = None) -> TrainState:
        """A fresh state, made on the mesh piece by piece: no device ever holds the whole of it.

        Shapes come first (`eval_shape`), then shardings, and then one compiled init writes each piece
        where it belongs.

        Args:
          init_fn: returns the boxed parameters, e.g. `functools.partial(model.init, key)`.
          context: untrained arrays; copied, so the caller's stay valid when the state is donated.

        Returns:
          `TrainState` at step 0; an average starts at the parameters.

        Raises:
          ConfigError: a parameter is too narrow for an average.
        """
        context = _as_arrays(context)
        with use_mesh(self.mesh):
            # Traced here, and not again below: a third of the time before the program is compiled.
            boxed = jax.jit(init_fn, inline=True)
            _, shardings = self._described(boxed, context)
            placed = _copy(context, shardings.context)
            fresh = jax.jit(
                lambda: self._fresh(unbox(boxed())), out_shardings=shardings.replace(context={})
            )()
        return fresh.replace(context=placed)

    @in_32_bits()
    def abstract(self, init_fn: Callable[[], Tree] | Tree, context: Tree = None) -> TrainState:
        """The result of `init` as `jax.ShapeDtypeStruct`s with shardings, to restore into.

        `init_fn` may also be the shapes that it would make (`abstract_params`), which saves tracing it.
        """
        context = jax.eval_shape(lambda x: x, {} if context is None else context)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            *self._described(init_fn, context),
        )

    @in_32_bits()
    def from_params(
        self,
        params: Tree,
        context: Tree = None,
        *,
        ema_params: Tree = None,
        ema_count: jax.Array | int = 0,
        opt_state: Tree = None,
    ) -> TrainState:
        """A state at step 0 that starts from parameters which are on the mesh already (a new round).

        Everything is copied: no two leaves of a donated state may share a buffer, and none may share one
        with the caller.

        Args:
          params: nested dict of placed arrays (`place_whole` places host arrays).
          context: untrained arrays.
          ema_params, ema_count: an average to continue, if the config keeps one; it starts at
            `params` if None.
          opt_state: an optimizer state to continue with; fresh if None.

        Raises:
          ConfigError: a parameter is no array of JAX, or too narrow for an average; `opt_state` is that of
            another optimizer, or its schedule has ended.
        """
        context = _as_arrays(context)
        devices = set(self.mesh.devices.flat)
        for path, leaf in flat_leaves(params).items():
            require(
                isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices,
                f"params: {path} is {type(leaf).__name__}, not an array on the mesh's {len(devices)} "
                "devices; place all of them with sdtt_jax.parallel.placement.place_whole(params, mesh).",
            )
        placement = jax.tree.map(lambda x: x.sharding, params)
        _, shardings = self._mirrored(jax.eval_shape(lambda: params), placement, context)
        with use_mesh(self.mesh):
            state = jax.jit(
                lambda p: jax.tree.map(jnp.copy, self._fresh(p)),
                out_shardings=shardings.replace(context={}),
            )(params)
            state = state.replace(context=_copy(context, shardings.context))
            if state.ema_params is not None and ema_params is not None:
                state = state.replace(
                    ema_params=_copy(ema_params, shardings.ema_params),
                    ema_count=_copy(jnp.int32(ema_count), shardings.ema_count),
                )
            if opt_state is not None:
                self._check_goes_on(opt_state, state.opt_state)
                state = state.replace(opt_state=_copy(opt_state, shardings.opt_state))
        return state

    def _check_goes_on(self, opt_state: Tree, fresh: Tree) -> None:
        """Raises `ConfigError` unless a training with this config can go on with an optimizer's state."""
        config, steps = self.config.optimizer, self.config.num_steps
        remedy = "leave it out for a fresh one (reset_optimizer_on_growth=True in rounds)"
        require(
            flat_leaves(opt_state).keys() == flat_leaves(fresh).keys(),
            f"opt_state is not that of the config's {config.name} for these parameters; {remedy}.",
        )
        count = int(num_updates(opt_state))
        require(
            config.schedule == "constant" or count < steps,
            f"opt_state has made {count} updates, after which schedule={config.schedule!r} of "
            f"num_steps={steps} has the rate 0, so nothing would be learnt; {remedy}, or take "
            "schedule='constant'.",
        )

    def _fresh(self, params: Tree) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        for path, leaf in flat_leaves(params).items() if self.config.ema_decay else ():
            require(
                leaf.dtype.itemsize >= 4,
                f"ema_decay={self.config.ema_decay} needs parameters of float32, and {path} is {leaf.dtype}, "
                "in which an average stands still; convert them, or set ema_decay=0.",
            )
        return TrainState(
            step=zero,
            params=params,
            opt_state=self.optimizer.init(params),
            ema_params=jax.tree.map(jnp.copy, params) if self.config.ema_decay else None,
            ema_count=zero,
            context={},
            rejected=zero,
            rejected_in_a_row=zero,
            loss_mean=jnp.zeros((), jnp.float32) if self.config.spike_factor else None,
        )

    def _described(
        self, init_fn: Callable[[], Tree] | Tree, context: Tree
    ) -> tuple[TrainState, TrainState]:
        """Shapes and shardings of what `init` makes; traces `init_fn` once, if it is a function."""
        boxed = jax.eval_shape(init_fn) if callable(init_fn) else init_fn
        return self._mirrored(unbox(boxed), tree_shardings(boxed, RULES, self.mesh), context)

    def _mirrored(
        self, params: Tree, placement: Tree, context: Tree
    ) -> tuple[TrainState, TrainState]:
        """Shapes and shardings of a state with these (abstract) parameters and their `placement`."""
        state = jax.eval_shape(self._fresh, params).replace(context=context)
        return state, mirror_shardings(state, placement, params, self.mesh)


def ema_decay_at(count: jax.Array | int, decay: float) -> jax.Array:
    """Decay of the average's update number `count` = 1, 2, …: `min(decay, (1 + n) / (10 + n))`.

    The ramp lets the average forget the random start (the SDTT reference code uses the same).
    """
    n = jnp.asarray(count, jnp.float32)
    return jnp.minimum(decay, (1 + n) / (10 + n))


def _as_arrays(tree: Tree) -> Tree:
    return jax.tree.map(
        lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), {} if tree is None else tree
    )


def _copy(tree: Tree, shardings: Tree) -> Tree:
    if not jax.tree.leaves(tree):
        return tree  # Nothing to compile.
    moved = jax.device_put(tree, shardings)
    return jax.jit(lambda t: jax.tree.map(jnp.copy, t), out_shardings=shardings)(moved)
