"""Generations within a user's `jax.shard_map`, each device its own texts. Oracle: JAX's own check of them.

JAX (check_vma, its default) says over which devices each value varies. A device that has revealed all its
texts makes no further call, so a program in which devices wait for each other would never end: none may.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from sdtt_jax.causal.sampler import generate
from sdtt_jax.diffusion.decoders import DECODERS
from sdtt_jax.diffusion.decoders.base import Helper
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.networks import CausalConfig, CausalNetwork, Denoiser, DenoiserConfig
from sdtt_jax.networks.base import abstract_params
from sdtt_jax.parallel.placement import unbox
from tests.every_decoder import LENGTH, MORE, OPTIONS, SIZES

DENOISER, CAUSAL = Denoiser(DenoiserConfig(**SIZES)), CausalNetwork(CausalConfig(**SIZES))
MODEL, ALIKE, SPLIT = (
    MaskedDiffusion(DENOISER, make_schedule()),
    PartitionSpec(),
    PartitionSpec("x"),
)
TEXTS = jax.ShapeDtypeStruct((4, LENGTH), jnp.int32)


def written(mode, params, helpers, key, x):
    """Texts by a decoder, or token by token."""
    if mode == "causal":
        return generate(CAUSAL, helpers["causal"], key, x[:, :2], LENGTH - 2)
    kinds = DECODERS[mode.split(":")[0]].helper
    network, bos_id = (CAUSAL, 0) if kinds[:1] == ("causal",) else (DENOISER, None)
    helper = Helper(helpers[kinds[0]], network, bos_id) if kinds else None
    return sample(MODEL, params, key, x, SamplerConfig(4, mode=mode), helper=helper)[0].x


@pytest.mark.parametrize(
    "mode", ["causal", *(name + OPTIONS.get(name, "") for name in DECODERS), *MORE]
)
def test_each_device_writes_its_own_texts_and_waits_for_no_other(mode):
    """`blocks`, `refine`, `energy`, `skeleton`, `stop=` failed; the others could wait for ever."""
    params, causal = (unbox(abstract_params(network)) for network in (DENOISER, CAUSAL))
    mesh = AbstractMesh((2,), ("x",), (AxisType.Auto,))

    def write(params, helpers, key, x):
        key = jax.random.fold_in(key, jax.lax.axis_index("x"))
        return written(mode, params, helpers, key, x)

    specs = (ALIKE, ALIKE, ALIKE, SPLIT)
    sharded = jax.shard_map(write, mesh=mesh, in_specs=specs, out_specs=SPLIT)
    helpers = {"causal": causal, "denoiser": params}
    program = jax.make_jaxpr(sharded)(
        params, helpers, jax.eval_shape(lambda: jax.random.key(0)), TEXTS
    )
    assert program.out_avals[0].shape == TEXTS.shape
    assert not re.search(r"\b(pmax|pmin|psum|ppermute|all_gather|all_to_all)", str(program))
