"""Program of test_multidevice.py: losses, gradients and texts on one mesh of virtual devices, as JSON.

python -m tests.distillation.eight_devices DATA FSDP MODEL
"""

import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.diffusion.masking import q_xt
from sdtt_jax.diffusion.nelbo import denoising_terms
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.loss import distillation_terms
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.models.config import DenoiserConfig
from sdtt_jax.models.denoiser import make_denoiser
from sdtt_jax.training import sharding as sh
from tests.worlds import noisy_params

BATCH = 16
DENOISER = make_denoiser(
    # 250 tokens: two lanes of 128, so that a model axis of 2 or 4 splits the head's columns.
    DenoiserConfig(vocab_size=250, length=12, num_layers=2, embed_dim=32, num_heads=4, cond_dim=8)
)
SCHEDULE = make_schedule()


def distill(params, teacher, x0, key):
    total, count = distillation_terms(
        DENOISER, params, teacher, x0, jnp.float32(0.2), key, SCHEDULE, DistillConfig()
    )
    return total / count


def bound(params, teacher, x0, key):
    del teacher
    return denoising_terms(DENOISER, params, x0, key, SCHEDULE).total / x0.size


def texts(params, teacher, x0, key):
    del teacher
    x_t = q_xt(key, x0, jnp.full((BATCH,), 0.7), DENOISER.mask_id)
    x_init = prior_sample(BATCH, x0.shape[1], DENOISER.mask_id, x_t, x_t != DENOISER.mask_id)
    return sample(DENOISER, params, key, x_init, SCHEDULE, SamplerConfig(4))[0].x


def main(data: int, fsdp: int, model: int) -> dict:
    mesh = sh.make_mesh(sh.MeshConfig(data, fsdp, model))
    boxed = jax.eval_shape(DENOISER.init, jax.random.key(0))
    shardings = sh.tree_shardings(boxed, sh.RULES, mesh)
    params, teacher = (
        jax.device_put(noisy_params(DENOISER, seed, 0.1), shardings) for seed in (0, 1)
    )
    x0 = np.asarray(jax.random.randint(jax.random.key(2), (BATCH, 12), 0, 250), np.int32)
    arguments = (params, teacher, sh.place_batch(x0, mesh), jax.random.key(3))
    result = {}
    with sh.use_mesh(mesh):
        for loss in (distill, bound):
            value, gradient = jax.jit(jax.value_and_grad(loss))(*arguments)
            result[loss.__name__] = float(value)
            for path, leaf in jax.tree_util.tree_leaves_with_path(nn.unbox(gradient)):
                result[f"{loss.__name__}/{sh.leaf_name(path)}"] = float(jnp.linalg.norm(leaf))
        result["texts"] = jax.jit(texts)(*arguments).tolist()
        kernel = params["head"]["linear"]["kernel"]
        result["head shard"] = list(kernel.addressable_shards[0].data.shape)
    return result


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*map(int, sys.argv[1:4]))) + "\n")
