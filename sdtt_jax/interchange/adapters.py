"""Adapters on disk: stored without their base parameters, merged with them when loaded."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from sdtt_jax.checkpoints.store import load_params, stored_digest
from sdtt_jax.config import from_mapping, to_mapping
from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.networks.base import Network, abstract_params
from sdtt_jax.networks.lora import LoraConfig, frozen, init_adapters, merged
from sdtt_jax.parallel.mesh import RULES
from sdtt_jax.parallel.placement import spread_shardings, tree_shardings, unbox
from sdtt_jax.paths import with_target
from sdtt_jax.typing import Params, Tree


def adapter_facts(config: LoraConfig, root: Path, base: str) -> dict[str, Any]:
    """The metadata stored with adapters: their config, and the name and digest of their base.

    `base` is the base's folder, relative to the run's `root`.
    """
    return {
        "lora": to_mapping(config),
        "base": {"folder": base, "digest": stored_digest(root / base)},
    }


def read_delivered(
    folder: Path, network_of: Callable[[dict[str, Any]], Network], mesh: Mesh | None
) -> tuple[Params, dict[str, Any]]:
    """Reads the parameters and facts that `save_params` wrote; adapters are merged with their base.

    `network_of` maps the facts to the network. The parameters are spread over the mesh, or lie on the first
    device if it is None.

    Raises:
      CheckpointError: the folder is missing or damaged, or the base is missing or another one.
    """

    def lora_of(facts: dict[str, Any]) -> LoraConfig | None:
        return from_mapping(LoraConfig, facts["lora"], "lora") if "lora" in facts else None

    def places(facts: dict[str, Any]) -> Tree | None:
        return mesh and network_shardings(network_of(facts), mesh, lora_of(facts), str(folder))

    params, facts = load_params(folder, places)
    lora = lora_of(facts)
    if lora is None:
        return params, facts
    network = network_of(facts)
    whole = None if mesh is None else network_shardings(network, mesh, name=str(folder))
    base, _ = load_params(_base_of(folder, facts["base"]), mesh and _spread(network, mesh))

    def joined(base: Params, adapters: Params) -> Params:
        return merged(frozen(base, lora), adapters, lora)

    with jax.set_mesh(None):  # a caller's own may be another one
        params = jax.jit(joined, out_shardings=whole)(base, params)
    # Merged parameters need no base any more.
    return params, {n: x for n, x in facts.items() if n not in ("lora", "base")}


def read_base(folder: Path, network: Network, config: LoraConfig, mesh: Mesh) -> Params:
    """Reads the base of adapters, placed as a training step holds it, in the dtype that `config` says.

    A base stored in float32 may be twice as large as after the cast, so it is read split over the devices,
    cast, and only then placed.
    """
    base, _ = load_params(folder, _spread(network, mesh))
    cast = functools.partial(frozen, config=config)
    return jax.jit(cast, out_shardings=network_shardings(network, mesh))(base)


def network_shardings(
    network: Network, mesh: Mesh, lora: LoraConfig | None = None, name: str = "The network"
) -> Tree:
    """Where a network's parameters, or the adapters of `lora`, lie on a mesh by the rules of training.

    If the mesh cannot split them, the `ConfigError` begins with `name`.
    """
    made = abstract_params(network)
    if lora is not None:
        made = jax.eval_shape(functools.partial(init_adapters, network, lora), jax.random.key(0))
    try:
        return tree_shardings(made, RULES, mesh)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _spread(network: Network, mesh: Mesh) -> Tree:
    return spread_shardings(unbox(abstract_params(network)), mesh)


def _base_of(folder: Path, said: dict[str, str]) -> Path:
    above = [path / said["folder"] for where in with_target(folder) for path in where.parents]
    found = next((path for path in above if path.is_dir()), None)
    if found is None:
        raise CheckpointError(
            f"{folder} holds adapters (LoRA), and no folder above it has their base {said['folder']}; copy "
            "it there from their run."
        )
    digest = stored_digest(found)
    if digest != said["digest"]:
        raise CheckpointError(
            f"{folder} holds adapters (LoRA) of a base of digest {said['digest'][:12]}, and {found} has "
            f"{digest[:12]}; copy the base of their run there."
        )
    return found
