"""Low-rank adapters: a tree separate from the parameters, which stay as they are (LoRA, arXiv 2106.09685).

The adapter of a linear map `x W` is `a: [in, rank]` and `b: [rank, out]`, and what the map computes is
`x W + alpha / rank (x a) b`. The two products are computed separately from `x W`, and `a b` is not added to
`W`: a gradient then needs neither an array of the size of `W` nor the third of the backward pass for it.
For a network of 8 billion parameters that saves 16 GB for the sum and 16 GB for its gradient, for teacher and
student each. Adapters are merged into a network that is exported or loaded.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdtt_jax.config import choose, one_of, positive, require, whole
from sdtt_jax.networks.base import ADAPTERS, Network, abstract_params
from sdtt_jax.networks.layers import fan_in_uniform
from sdtt_jax.trees import flat_leaves, leaf_name, nested
from sdtt_jax.typing import Key, Params

BASE_DTYPES = ("float32", "bfloat16")
TARGETS = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_out", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which linear maps of the blocks have an adapter, and how large it is."""

    rank: int = 0  # rank of the adapters; 0: there are none, and all parameters are trained
    alpha: float = 16.0  # an adapter's product is multiplied by `alpha / rank`
    # Names of linear maps; those that a network does not have are left out.
    targets: tuple[str, ...] = TARGETS
    # The dtype of the blocks' frozen matrices. Norms, embedding and head, whose sums are float32, keep that.
    base_dtype: str = "float32"

    def __post_init__(self) -> None:
        whole(0, self, "rank")
        positive(self, "alpha")
        one_of(self, base_dtype=BASE_DTYPES)
        for target in self.targets:
            choose("targets", target, TARGETS)
        require(len(self.targets) > 0, "targets must name at least one linear map.")

    @property
    def scale(self) -> float:
        """The factor that an adapter's product is multiplied by."""
        return self.alpha / self.rank


def init_adapters(network: Network, config: LoraConfig, key: Key) -> Params:
    """Fresh adapters, which change nothing yet: `a` starts as linear maps do, `b` at zero.

    Args:
      network: the network whose linear maps get adapters.
      config: rank, not 0, and targets.
      key: PRNG key.

    Returns:
      A part of the parameters' tree with `a: [layers, in, rank]` and `b: [layers, rank, out]` in place of
      each kernel, `in` and `out` being one axis or several, boxed with their logical axes.

    Raises:
      ConfigError: the network has none of the targets.
    """
    adapters: dict[str, Any] = {}
    for index, (path, box) in enumerate(_kernels(network, config).items()):
        axes, shape = box.names, box.value.shape
        # Axes before `out`: that of the layers, and the contracted ones, two where (heads, kv) are merged.
        split = 3 if axes[2] == "kv" else 2
        init = fan_in_uniform(tuple(range(1, split)), (split,))
        a = init(jax.random.fold_in(key, index), (*shape[:split], config.rank), jnp.float32)
        b = jnp.zeros((shape[0], config.rank, *shape[split:]), jnp.float32)
        adapters |= {
            f"{path}/a": nn.LogicallyPartitioned(a, (*axes[:split], "rank")),
            f"{path}/b": nn.LogicallyPartitioned(b, (axes[0], "rank", *axes[split:])),
        }
    return nested(adapters)


def check_targets(network: Network, config: LoraConfig) -> None:
    """Raises `ConfigError` if the network has none of the linear maps that get adapters."""
    _kernels(network, config)


def with_adapters(base: Params, adapters: Params, config: LoraConfig) -> Params:
    """Parameters for any function of the network: `base` and the adapters.

    Args:
      base: parameters, unboxed.
      adapters: from `init_adapters`, unboxed.
      config: their scale.
    """
    leaves = {
        path: leaf * config.scale if path.endswith("/b") else leaf
        for path, leaf in flat_leaves(adapters).items()
    }
    return base | {ADAPTERS: nested(leaves)}


def merged(base: Params, adapters: Params, config: LoraConfig) -> Params:
    """Parameters without adapters, float32, that compute the same.

    Args:
      base: parameters, unboxed.
      adapters: from `init_adapters`, unboxed.
      config: their scale.
    """
    leaves, found = flat_leaves(base), flat_leaves(adapters)
    for path in [path.removesuffix("/a") for path in found if path.endswith("/a")]:
        kernel, a, b = leaves[f"{path}/kernel"], found[f"{path}/a"], found[f"{path}/b"]
        left, right = a.reshape(len(a), -1, config.rank), b.reshape(len(b), config.rank, -1)
        change = jnp.einsum("lir,lro->lio", left, right, precision=jax.lax.Precision.HIGHEST)
        leaves[f"{path}/kernel"] = kernel + config.scale * change.reshape(kernel.shape)
    return nested({path: jnp.asarray(leaf, jnp.float32) for path, leaf in leaves.items()})


def frozen(params: Params, config: LoraConfig) -> Params:
    """The frozen parameters under adapters: the blocks' matrices are in `config.base_dtype`.

    Args:
      params: a network's parameters, unboxed.
      config: the dtype.
    """

    def cast(path: str, leaf: Any) -> Any:
        matrix = path.startswith("blocks/") and path.endswith("/kernel")
        return leaf.astype(config.base_dtype) if matrix else leaf

    return nested({path: cast(path, leaf) for path, leaf in flat_leaves(params).items()})


def _kernels(network: Network, config: LoraConfig) -> dict[str, Any]:
    """The boxed abstract kernels that have adapters, by the path of their linear map."""
    found, names = {}, set()
    for path, box in jax.tree_util.tree_leaves_with_path(
        abstract_params(network),
        is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
    ):
        room, *parents, name = leaf_name(path).split("/")
        if room == "blocks" and name == "kernel":
            names.add(parents[-1])
            if parents[-1] in config.targets:
                found["/".join((room, *parents))] = box
    require(
        bool(found),
        f"lora.targets={config.targets} matches no linear map of a {type(network).__name__}; choose from: "
        f"{', '.join(name for name in TARGETS if name in names)}.",
    )
    return found
