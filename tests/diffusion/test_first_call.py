"""The first call of a generation from nothing: one position is computed, and its state is that of all.

Oracle: the same generation by a network that does not say that it is `position_free`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from tests.worlds import LENGTH, MASK, noisy_params, tiny_network

SHAPES: list[tuple[int, ...]] = []
BATCH, STEPS = 64, 3


@dataclasses.dataclass(frozen=True)
class Recording:
    """A network that notes the shape of the tokens of each call that is made."""

    network: Any
    position_free: bool

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def hidden(self, params: Any, tokens: jax.Array, sigma: jax.Array | None = None) -> jax.Array:
        jax.debug.callback(lambda: SHAPES.append(tokens.shape))
        return self.network.hidden(params, tokens, sigma)


def _written(network, x_init, config, *, position_free):
    SHAPES.clear()
    diffusion = MaskedDiffusion(Recording(network, position_free), make_schedule())
    compiled = jax.jit(sample, static_argnames=("diffusion", "config"))
    params = noisy_params(network, 0)
    state, _ = jax.device_get(compiled(diffusion, params, jax.random.key(1), x_init, config))
    jax.effects_barrier()
    return state, list(SHAPES)


@pytest.mark.parametrize("mode", ["first-hitting", "confidence"])
@pytest.mark.parametrize("time_conditioned", [False, True])
def test_one_position_is_computed_and_the_texts_are_the_same(mode, time_conditioned):
    network = tiny_network(time_conditioned=time_conditioned)
    x_init, config = prior_sample(BATCH, LENGTH, MASK), SamplerConfig(STEPS, mode=mode)
    whole = (BATCH, LENGTH)
    ours, shapes = _written(network, x_init, config, position_free=True)
    assert shapes == [(BATCH, 1), whole, whole]
    theirs, shapes = _written(network, x_init, config, position_free=False)
    assert shapes == [whole] * STEPS
    np.testing.assert_array_equal(ours.x, theirs.x)
    assert int(ours.nfe) == int(theirs.nfe) == STEPS


def test_the_whole_batch_is_computed_where_anything_is_given():
    x_init = prior_sample(BATCH, LENGTH, MASK).at[5, 1].set(0)
    config = SamplerConfig(STEPS, mode="first-hitting")
    state, shapes = _written(tiny_network(), x_init, config, position_free=True)
    assert shapes == [(BATCH, LENGTH)] * STEPS
    assert jnp.all(state.x[5, 1] == 0)
