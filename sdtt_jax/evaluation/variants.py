"""Variants of a model: early exit, and nearest-neighbour retrieval."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import require
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import q_xt
from sdtt_jax.evaluation.exits import EXITS_FILE, check_exits, read_exits, with_exits
from sdtt_jax.evaluation.settings import Variation
from sdtt_jax.evaluation.texts import training_texts
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.batches import map_batches
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.learnt import read_fitted
from sdtt_jax.model.masked import Model
from sdtt_jax.networks.exiting import Exiting
from sdtt_jax.networks.retrieval import Datastore, Retrieving
from sdtt_jax.parallel.mesh import full_batch
from sdtt_jax.parallel.placement import place_batch
from sdtt_jax.typing import Key, Params, Tokens

AnyModel = TypeVar("AnyModel", bound=Model | CausalModel)


def variant(
    model: AnyModel,
    wanted: Variation,
    data: Path | None,
    check: Callable[[AnyModel], None] = lambda _: None,
) -> AnyModel:
    """The wanted variant of `model`; `model` itself if none is wanted.

    A variant has its own identity in results.

    Args:
      model: as it was loaded.
      wanted: `early_exit`, `neighbours` and what belongs to them, among the other settings of a command.
      data: the prepared data of the model's run, for `neighbours="own"`; None for none.
      check: refuses what a variant with neighbours cannot do; called with one of an empty datastore, before
        the states of all texts are computed.

    Raises:
      ConfigError: the variant cannot be made; or the model is causal, and a setting that only denoisers read
        has another value than its default.
    """
    for field in dataclasses.fields(wanted):
        idle = field.metadata["denoisers"] and isinstance(model, CausalModel)
        require(
            not idle or getattr(wanted, field.name) == field.default,
            f"--{field.name} is for denoisers, and {model.facts['path']} is causal; leave it out.",
        )
    if not wanted.varied:
        return model
    varied: Any = model
    told: dict[str, Any] = {}
    if wanted.early_exit:
        varied, told["early_exit"] = _exiting(varied, wanted.early_exit)
    if wanted.neighbours:
        names = (field.name for field in dataclasses.fields(Variation))
        told |= {name: getattr(wanted, name) for name in names if name.startswith("neighbour")}
    facts = model.facts | {"checkpoint_digest": model.params_digest, "variant": told}
    varied = dataclasses.replace(varied, facts=facts)
    if wanted.neighbours:
        varied = _retrieving(varied, wanted, data, check)
    result: AnyModel = varied
    return result


def _exiting(model: Model, bound: float) -> tuple[Model, dict[str, Any]]:
    """`model` with the threshold and exits stored with its checkpoint, and the facts of both."""
    check_exits(model)
    remedy = f"calibrate it with experiments.evaluate --suite=exits --exit_bound={bound}"
    what = f"early_exit={bound}: its threshold"
    found = read_fitted(model, EXITS_FILE, str(bound), what, remedy)
    kind = None if model.sequences is None else model.sequences.kind
    require(
        found.get("sequences") == kind,
        f"{what}, stored with {model.facts['path']}, was calibrated as if its sequences were "
        f"{found.get('sequences', 'packed')}, but they are {kind or 'packed'}; {remedy} again.",
    )
    if found.get("exits"):
        remedy += ", with the same --exit_training_steps"
        model = with_exits(model, read_exits(model, found["exits"], what, remedy))
    network: Any = Exiting(model.denoiser, found["threshold"])
    return dataclasses.replace(model, denoiser=network), {"bound": bound} | found


def _retrieving(
    model: Model, wanted: Variation, data: Path | None, check: Callable[[Any], None]
) -> Model:
    """`model` with a datastore of states of real text, which is split over the mesh's devices."""
    where = model.facts["path"]
    require(
        model.diffusion.noise_kind is None and model.sequences is None,
        f"--neighbours is for denoisers that see whole sequences and no noise, unlike {where}; leave it out.",
    )
    how = wanted.neighbour_count, wanted.neighbour_share, wanted.neighbour_temperature
    network: Any = Retrieving(model.denoiser, *how)

    def with_store(*arrays: Any) -> Model:
        store: Any = Datastore(*arrays)
        if model.mesh is not None:
            size = full_batch(len(store.tokens), model.mesh)
            rows = [(0, size - len(store.tokens))]
            store = jax.tree.map(lambda x: np.pad(x, rows + [(0, 0)] * (x.ndim - 1)), store)
            store = place_batch(store, model.mesh)
        params = {"network": model.params, "store": jax.tree.map(jnp.asarray, store)}
        return dataclasses.replace(model, denoiser=network, params=params)

    empty = np.zeros((1, model.config.embed_dim), np.float32)
    check(with_store(empty, np.zeros(1, np.int32), np.zeros(1, bool)))
    tokens = training_texts(model, "neighbours", wanted.neighbours, data, wanted.neighbour_texts)
    key = purpose_key(wanted.seed, "neighbours")
    keys, valid = map_batches(
        functools.partial(remember, model.diffusion, key), model.params, tokens, wanted.batch_size
    )
    return with_store(keys[valid].astype(np.float32), tokens[valid], valid[valid])


@functools.partial(jax.jit, static_argnames="diffusion")
def remember(
    diffusion: MaskedDiffusion, key: Key, params: Params, index: jax.Array, x0: Tokens
) -> tuple[jax.Array, jax.Array]:
    """Hidden states of texts each masked at a random time, and where they are masked.

    Args:
      diffusion, params: the model.
      key: PRNG key of all batches.
      index: the batch's number.
      x0: `[batch, length]` int32, no MASK.
    """
    key_t, key_mask = jax.random.split(jax.random.fold_in(key, index))
    t = jax.random.uniform(key_t, x0.shape[:1], jnp.float32)
    x_t = q_xt(key_mask, x0, diffusion.schedule.move_chance(t), diffusion.mask_id)
    return diffusion.hidden(params, x_t, diffusion.schedule.sigma(t)), x_t == diffusion.mask_id
