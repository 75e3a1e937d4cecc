"""A run's folder of random parameters, for tests that load and export it."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import sdtt_jax
from sdtt_jax.checkpoints.store import save_params
from sdtt_jax.config import to_mapping
from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.data.tokenizer import save_tokenizer
from sdtt_jax.diffusion.schedule import ScheduleConfig
from sdtt_jax.networks import Denoiser, DenoiserConfig

TEXTS = ["in the beginning god created the heavens and the earth"] * 4


def random_params(network, seed):
    """Normal numbers of standard deviation 0.1, made by NumPy, so that nothing is compiled."""
    shapes = nn.unbox(jax.eval_shape(network.init, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    values = jax.tree.map(lambda x: (0.1 * rng.normal(size=x.shape)).astype(x.dtype), shapes)
    return jax.device_put(values)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with a teacher and one round, of random parameters."""
    root = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer(TokenizerConfig(model_type="char", vocab_size=64), TEXTS, "text8")
    (root / "tokenizer").mkdir()
    save_tokenizer(tokenizer, root / "tokenizer")
    config = DenoiserConfig(
        vocab_size=tokenizer.vocab_size,
        length=12,
        num_layers=2,
        embed_dim=16,
        num_heads=2,
        cond_dim=8,
    )
    for index, stage in enumerate(["teacher", "rounds/01"]):
        meta = {
            "kind": "denoiser",
            "model": to_mapping(config),
            "schedule": to_mapping(ScheduleConfig()),
            "stage": stage,
        }
        save_params(root / stage / "final", random_params(Denoiser(config), index), meta)
    return root


@pytest.fixture(scope="module")
def model(run):
    return sdtt_jax.load(run)
