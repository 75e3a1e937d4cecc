"""JAX's own flags change no result. Oracle: the same call without the flag, bit for bit.

All that draws is traced with `jax_enable_x64` and strict promotion of dtypes: the program has no value of
64 bits and draws the same.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.causal.sampler import generate
from sdtt_jax.diffusion.decoders.base import Helper
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.estimators import ESTIMATORS, BoundConfig
from sdtt_jax.diffusion.forward import q_xt
from sdtt_jax.diffusion.nelbo import NelboConfig, denoising_terms, nelbo
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import SCHEDULES, ScheduleConfig, make_schedule
from sdtt_jax.distillation.coupled import CoupledDistillConfig, states_along
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.distillation.trajectories import Trajectories, noise_of, trajectory_end
from sdtt_jax.evaluation import cloze, likelihood
from sdtt_jax.model.batches import even_offsets
from sdtt_jax.networks import CausalConfig, CausalNetwork, Denoiser, DenoiserConfig
from sdtt_jax.networks.base import abstract_params
from sdtt_jax.networks.config import CoupledConfig
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.networks.gpt2 import GPT2Config, GPT2Network
from sdtt_jax.objectives import distill_loss
from sdtt_jax.parallel.placement import unbox
from tests.forking import run_module
from tests.training import toy

VOCAB, LENGTH = 11, 8
SIZES = {"vocab_size": VOCAB, "length": LENGTH, "num_layers": 1, "embed_dim": 8, "num_heads": 2}
TEXTS = np.arange(2 * LENGTH, dtype=np.int32).reshape(2, LENGTH) % VOCAB


def diffusion(schedule="log-linear"):
    config = DenoiserConfig(**SIZES, cond_dim=4, time_conditioned=True)
    return MaskedDiffusion(Denoiser(config), make_schedule(ScheduleConfig(kind=schedule)))


def parameters(network):
    return jax.tree.map(jnp.asarray, _numbers(network))


@functools.cache
def _numbers(network):
    """NumPy's, so that many traces can share them."""
    rng = np.random.default_rng(0)
    shapes = unbox(abstract_params(network))
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def generated(key, **options):
    model, config = diffusion(), SamplerConfig(**{"num_steps": 4} | options)
    params = parameters(model.denoiser)
    return sample(model, params, key, prior_sample(2, LENGTH, VOCAB), config)[0].x


def written_with_a_helper(key, mode, *, causal):
    """Texts by a decoder that asks a second model."""
    model, network = diffusion(), diffusion().denoiser
    if causal:
        network = CausalNetwork(CausalConfig(**SIZES))
    helper = Helper(parameters(network), network, 0 if causal else None)
    params, config = parameters(model.denoiser), SamplerConfig(4, mode=mode)
    x_init = prior_sample(2, LENGTH, VOCAB)
    return sample(model, params, key, x_init, config, helper=helper)[0].x


def continued(kind, config, key):
    network, prompt = kind(config(**SIZES)), jnp.zeros((2, 1), jnp.int32)
    params = parameters(network)
    return generate(network, params, key, prompt=prompt, num_tokens=5, top_p=0.9)


def coupled(key):
    """States along the trajectories of a network that sees noise."""
    network = CoupledDenoiser(CoupledConfig(**SIZES, cond_dim=4))
    model, config = MaskedDiffusion(network, make_schedule()), CoupledDistillConfig(4)
    keys, params = jax.random.split(key, 2), parameters(network)
    noise = noise_of(model, keys, LENGTH)
    tokens = trajectory_end(model, params, noise, config.trajectory(1))
    return states_along(model, Trajectories(noise, tokens), key, config, 1)[:3]


def scored(key, **options):
    model = diffusion()
    return nelbo(model, parameters(model.denoiser), TEXTS, key, NelboConfig(**options))


def trained(schedule, key):
    model = diffusion(schedule)
    return denoising_terms(model, parameters(model.denoiser), TEXTS, key).total


def estimated(name, key):
    model, config = diffusion(), BoundConfig(name, 2)
    params = parameters(model.denoiser)
    rows = TEXTS, even_offsets(2, 2)
    return likelihood._estimates(model, config, None, key, params, jnp.int32(0), rows)


def distilled(key, number=np.float32, **options):
    model = diffusion()
    params = parameters(model.denoiser)
    context = {"teacher_params": params, "dt": number(1 / 8)}
    return distill_loss(model, DistillConfig(**options))(params, context, TEXTS, key).total


DRAWS = {
    "grid": generated,
    "cosine grid": functools.partial(generated, time_grid="cosine", top_k=3),
    "first-hitting": functools.partial(generated, mode="first-hitting", temperature=0.7, top_p=0.9),
    "confidence": functools.partial(generated, mode="confidence:order_temperature=0.5"),
    "entropy-bounded": functools.partial(generated, mode="entropy-bounded:bound=0.5"),
    "remdm": functools.partial(generated, mode="remdm:eta=0.3,loop=0.3"),
    "remdm-confidence": functools.partial(generated, mode="remdm-confidence:eta=0.3"),
    "refine": functools.partial(generated, mode="refine:window=4"),
    "learnt": functools.partial(generated, mode="learnt:counts=1/2/2/3,temperatures=0.9"),
    "staged": functools.partial(written_with_a_helper, mode="staged", causal=False),
    "speculative": functools.partial(
        written_with_a_helper, mode="speculative:window=2,relaxation=0.5", causal=False
    ),
    "skeleton": functools.partial(written_with_a_helper, mode="skeleton:every=4", causal=True),
    "energy": functools.partial(written_with_a_helper, mode="energy", causal=True),
    "causal": functools.partial(continued, CausalNetwork, CausalConfig),
    "GPT-2": functools.partial(continued, GPT2Network, GPT2Config),
    "independent times": functools.partial(scored, antithetic=False),
    "flat times": functools.partial(scored, importance=True),
    "coupled": coupled,
    "distillation": distilled,
    "a step of NumPy": functools.partial(distilled, number=np.float64),
    "masks": lambda key: q_xt(key, TEXTS, np.full(2, 0.5), VOCAB),
    "the reference's times": functools.partial(distilled, reference_times=True),
    "cloze": lambda key: cloze._noise(BoundConfig(), key, LENGTH, jnp.int32(1), jnp.int32(0)),
    **{f"{name} schedule": functools.partial(trained, name) for name in SCHEDULES},
    **{f"{name} bound": functools.partial(estimated, name) for name in ESTIMATORS},
}


@pytest.mark.parametrize("name", DRAWS)
def test_nothing_that_draws_has_64_bits_with_x64(name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        program = jax.make_jaxpr(DRAWS[name])(jax.random.key(3))
    # Python's constants are scalars of 64 bits, which never widen an array.
    assert not re.search(r"bit_width=64|f64\[\w", str(program))
    assert not any(aval.dtype == jnp.float64 for aval in program.out_avals)


@pytest.mark.parametrize("name", ["grid", "causal", "learnt", "speculative", "skeleton"])
def test_a_key_gives_the_same_text_with_x64(name):
    expected = jax.jit(DRAWS[name])(jax.random.key(3))
    with jax.enable_x64(True):
        found = jax.jit(DRAWS[name])(jax.random.key(3))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


def test_every_decoder_runs_with_x64_and_strict_dtypes():
    """Models as users hold them, in a process of its own."""
    flags = {"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
    assert run_module("tests.every_decoder", [], flags) == (0, "", "")


def test_training_goes_on_with_the_same_bits_with_x64_and_strict_dtypes():
    """Warm-up, cosine and Muon: optax computes rates and powers of constants in JAX's widest float.

    With strict promotion of dtypes it raises a constant to the power of a count, which is an error.
    """
    config = toy.configured("muon", num_steps=6)
    plain, step, _ = toy.setup(config)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        wide, _, _ = toy.setup(config)
    toy.assert_same(plain, wide)
    for number in range(3):
        plain, _ = step(plain, toy.batch_at(number), jax.random.key(5))
        with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
            wide, _ = step(wide, toy.batch_at(number), jax.random.key(5))
    toy.assert_same(plain, wide)
