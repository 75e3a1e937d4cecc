"""Every config file validates; the paper's sizes are traced at full size without making an array."""

import importlib
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from experiments.settings import run_config
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.rounds import Student, next_round, round_dt
from sdtt_jax.networks import Denoiser
from sdtt_jax.objectives import distill_loss
from sdtt_jax.parallel.mesh import make_mesh
from sdtt_jax.parallel.placement import batch_sharding, replicated, unbox
from sdtt_jax.training.state import StateSpec
from sdtt_jax.training.step import make_train_step

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")
GPT2_VOCAB = 50_257


def load(name):
    return run_config(importlib.import_module(f"experiments.configs.{name}").get_config())


@pytest.mark.parametrize("name", NAMES)
def test_config_validates(name):
    assert load(name).data.length > 0


def test_the_evening_is_sdtt_and_few_calls_adds_noise_coupled_students():
    """Oracle: the table in docs/guides/train.md. The evening had trained all of the demo's students."""
    assert load("evening").distillers == ("sdtt",)
    assert load("few_calls").distillers == ("sdtt", "coupled", "coupled_idlm")


def test_paper_recipe():
    """Oracle: the paper's numbers (arXiv 2410.21035, section 5 and appendix)."""
    config = load("owt_small")
    assert config.distill.num_rounds == 7
    assert config.distill.num_distill_steps == 2
    assert config.distill.divergence == "kl-bwd"
    assert round_dt(config.distill, 1) == 1 / 1024
    assert round_dt(config.distill, 7) == 64 / 1024
    train = config.distill.train
    assert (train.num_steps, train.batch_size, train.ema_decay) == (10_000, 128, 0.9999)
    optimizer = train.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.warmup_steps) == ("adam", 6e-5, 500)
    assert (optimizer.schedule, optimizer.weight_decay, optimizer.clip_norm) == ("constant", 0, 1)


def test_reference_preset_differs_where_the_code_differs_from_the_paper():
    reference, paper = load("reference").distill, load("owt_small").distill
    assert reference.reference_times
    assert not paper.reference_times
    assert reference.train.optimizer.learning_rate == 3e-4
    assert reference.train.optimizer.warmup_steps == 2500


@pytest.mark.parametrize(("size", "millions"), [("small", 170), ("medium", 425), ("large", 863)])
def test_parameter_counts(size, millions):
    """Oracle: the sum over layers, written out: embedding, blocks with adaLN, final layer, time map."""
    config = load(f"owt_{size}").denoiser(GPT2_VOCAB)
    d, c, v, n = config.embed_dim, config.cond_dim, config.padded_vocab, config.num_layers
    block = 12 * d * d + 5 * d + 2 * d + 6 * d * (c + 1)
    final = d + 2 * d * (c + 1) + v * (d + 1)
    expected = v * d + n * block + final + (256 + 1) * c + (c + 1) * c
    shapes = jax.eval_shape(Denoiser(config).init, jax.random.key(0))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(shapes)))
    assert count == expected
    assert round(count / 1e6) == millions


def test_full_size_distillation_step_lowers():
    """12 x 768, 50k tokens, length 1024, batch 128 in bfloat16: traced and lowered, nothing allocated."""
    config = load("owt_small")
    denoiser = Denoiser(config.denoiser(GPT2_VOCAB))
    mesh = make_mesh(config.mesh, jax.devices()[:1])

    def init():
        return denoiser.init(jax.random.key(0))

    student = jax.eval_shape(lambda: next_round(config.distill, Student(unbox(init())), 1))
    state = StateSpec(config.distill.train, mesh).abstract(init, student.context)
    diffusion = MaskedDiffusion(denoiser, make_schedule(config.schedule))
    step = make_train_step(distill_loss(diffusion, config.distill), config.distill.train)
    shape = (config.distill.train.batch_size, config.data.length)
    batch = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
    text = step.lower(state, batch, key).as_text()
    assert "bf16" in text
    assert "50304" in text
