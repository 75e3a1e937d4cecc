"""Guidance by the given text. Oracles: logits combined in NumPy, a plain loop, and the exact softmax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.decoders import DECODERS
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.guidance import guided
from sdtt_jax.diffusion.sampler import SamplerConfig, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.errors import ConfigError
from sdtt_jax.networks import Denoiser, DenoiserConfig
from sdtt_jax.networks.blocks import BlockCausal
from sdtt_jax.networks.retrieval import Retrieving
from tests.worlds import MASK, TableDenoiser, as_model, noisy_params, random_table, small_llama

LENGTH, VOCAB, SCALE = 8, 10, 1.5
NETWORK = Denoiser(
    DenoiserConfig(VOCAB, length=LENGTH, num_layers=2, embed_dim=16, num_heads=2, cond_dim=8)
)
LLAMA = small_llama(VOCAB, LENGTH, num_layers=2, tied_head=True, shift=True)
KEY = jax.random.key(3)
GIVEN = np.arange(LENGTH) < 3
PROMPT = np.where(GIVEN, [1, 7, 2, 0, 0, 0, 0, 0], VOCAB).astype(np.int32)
_sample = jax.jit(sample, static_argnames=("diffusion", "config"))


def prompted(batch):
    return np.tile(PROMPT, (batch, 1))


def diffusion_of(network):
    return MaskedDiffusion(network, make_schedule())


@functools.partial(jax.jit, static_argnames="network")
def logits_of(network, params, x):
    return network.logits(network.head_params(params), network.hidden(params, x))


def combined(network, params, x, given=GIVEN, scale=SCALE):
    """`[length, vocab]` float64: (1 + w) times the logits of `x`, less w times those without the prompt."""
    free = np.where(given, VOCAB, x)
    seen, unseen = (
        np.asarray(logits_of(network, params, row[None])[0, :, :VOCAB], np.float64)
        for row in (x, free)
    )
    return (1 + scale) * seen - scale * unseen


@pytest.mark.parametrize("network", [NETWORK, LLAMA], ids=["own", "llama"])
def test_logits_are_pushed_away_from_those_without_the_given_text(network):
    """Two texts with prompts of their own; each is shown with two fillings, as `refine` shows a text."""
    given = np.stack([GIVEN, np.arange(LENGTH) == 6])
    params, rows = noisy_params(network, 0), PROMPT[None].repeat(4, 0)
    rows[:, 5:7] = [
        [4, VOCAB],
        [VOCAB, VOCAB],
        [4, 1],
        [8, 1],
    ]  # 4 and 8, written since, stay in both
    model = guided(diffusion_of(network), jnp.asarray(given), SCALE).denoiser
    found = jax.jit(lambda x: model.logits(model.head_params(params), model.hidden(params, x)))(
        rows
    )
    expected = [combined(network, params, row, given[n // 2]) for n, row in enumerate(rows)]
    np.testing.assert_allclose(found[:, :, :VOCAB], expected, atol=1e-4)


OPTIONS = {
    "learnt": ":counts=1/1/1/0",
    "blocks": ":length=3,cache=none",
    "refine": ":window=2,threshold=0",
}


@pytest.mark.parametrize("name", [name for name, row in DECODERS.items() if not row.helper])
def test_every_decoder_without_a_helper_writes_several_guided_texts(name):
    """Nothing is computed; a table, which is traced faster than a network."""
    config = SamplerConfig(4, mode=name + OPTIONS.get(name, ""), guidance=SCALE)
    write = functools.partial(sample, diffusion_of(TableDenoiser()), key=KEY, config=config)
    x_init = np.tile(np.array([1, MASK, MASK], np.int32), (3, 1))
    state, _ = jax.eval_shape(write, random_table(0), x_init=x_init)
    assert (state.x.shape, state.x.dtype) == (x_init.shape, jnp.int32)


def surest_first(params, calls, scale=SCALE):
    """LLaDA's loop with `cfg_scale`: one text, tokens and their order by the combined logits."""
    x = PROMPT.copy()
    for left in range(calls, 0, -1):
        masked = [i for i in range(LENGTH) if x[i] == VOCAB]
        logits = combined(NETWORK, params, x, scale=scale)
        sure = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).max(axis=1)
        for i in sorted(masked, key=lambda i: -sure[i])[: -(-len(masked) // left)]:
            x[i] = logits[i].argmax()
    return x


@pytest.mark.parametrize("mode", ["confidence", "blocks:length=8,cache=none,score=probability"])
def test_decoders_follow_the_guided_predictions(mode):
    """Each of the three steps takes two calls."""
    params = noisy_params(NETWORK, 0)
    config = SamplerConfig(3, mode=mode, temperature=0, guidance=SCALE)
    state, _ = _sample(diffusion_of(NETWORK), params, KEY, prompted(2), config)
    expected = surest_first(params, 3)
    np.testing.assert_array_equal(state.x, np.tile(expected, (2, 1)))
    assert int(state.nfe) == 6
    assert (surest_first(params, 3, scale=0) != expected).any(), "guidance changes what is written"


def test_tokens_are_drawn_from_the_guided_distribution():
    """One token is missing; 4,000 draws, chi-squared with 9 degrees of freedom at 99.9 %."""
    params, x = noisy_params(NETWORK, 0), np.where(np.arange(LENGTH) == 4, VOCAB, 1)
    x[:3] = PROMPT[:3]
    free = np.full(LENGTH, VOCAB)  # all the rest is given
    seen, unseen = (
        np.asarray(logits_of(NETWORK, params, row[None])[0, 4, :VOCAB], np.float64)
        for row in (x, free)
    )
    chances = np.exp((1 + SCALE) * seen - SCALE * unseen)
    chances /= chances.sum()
    x_init = np.tile(x.astype(np.int32), (4000, 1))
    config = SamplerConfig(1, mode="first-hitting", guidance=SCALE)
    state, _ = _sample(diffusion_of(NETWORK), params, KEY, x_init, config)
    counts = np.bincount(np.asarray(state.x[:, 4]), minlength=VOCAB)
    assert ((counts - 4000 * chances) ** 2 / (4000 * chances)).sum() < 27.9


def test_no_guidance_is_the_model_itself():
    diffusion = diffusion_of(NETWORK)
    assert guided(diffusion, jnp.asarray(GIVEN[None]), 0.0) is diffusion


class Noisy:
    """What `guided` asks of a network that sees noise."""

    mask_id, noise_kind = VOCAB, "gumbel"


@pytest.mark.parametrize(
    ("network", "said"),
    [(Noisy(), "trained to see it"), (Retrieving(NETWORK), "leave the neighbours out")],
)
def test_networks_that_cannot_be_guided_are_refused(network, said):
    with pytest.raises(ConfigError, match=said):
        guided(diffusion_of(network), jnp.asarray(GIVEN[None]), 1.0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"guidance": -0.5}, "guidance"),
        ({"guidance": float("nan")}, "guidance"),
        # From here on, hidden states would leave float32, and each token would be the first.
        ({"guidance": 1e39}, r"guidance must lie in \[0, 1e20\], not 1e\+39"),
        ({"guidance": 1.0, "mode": "speculative"}, "also asks a second model"),
        (
            {"guidance": 1.0, "mode": "blocks:length=4"},
            "with and without .* set guidance=0 or .* cache=none",
        ),
        ({"guidance": 1.0, "mode": "blocks:length=4,cache=dual"}, "cache=dual .* cache=none"),
    ],
)
def test_settings_without_a_meaning_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        SamplerConfig(4, **fields)


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_what_a_decoder_asks_of_a_network_is_asked_of_a_guided_one_too(guidance):
    """`Guided` hid the blocks of a block-causal network, so that others were written."""
    mode, network = "blocks:length=4,cache=none,start=prompt", BlockCausal(NETWORK, 4)
    config = SamplerConfig(4, mode=mode, guidance=guidance)
    with pytest.raises(ConfigError, match="attends within blocks of its own; take start=text"):
        sample(diffusion_of(network), noisy_params(NETWORK, 0), KEY, prompted(1), config)


def test_a_model_writes_guided_texts_within_jit():
    """Whether anything is given was asked of the traced tokens, which ended in JAX's error."""
    model = as_model(NETWORK, noisy_params(NETWORK, 0))
    config = SamplerConfig(2, guidance=1.0)
    x = jax.eval_shape(lambda x: model.denoise(KEY, x, config).x, prompted(1))
    assert x.shape == (1, LENGTH)


def test_states_of_a_narrow_network_are_combined_in_float32():
    """Oracle: its two states in NumPy; in bfloat16 the sum would be off by a hundredth."""

    class Narrow(TableDenoiser):
        def hidden(self, params, tokens, sigma=None):
            return super().hidden(params, tokens, sigma).astype(jnp.bfloat16)

    params, tokens = random_table(2), np.array([[1, MASK, MASK]], np.int32)
    model = guided(diffusion_of(Narrow()), tokens != MASK, 3.7)
    found = jax.jit(model.hidden)(params, tokens, np.zeros(1, np.float32))
    seen, unseen = (
        np.float32(params["table"][at].astype(jnp.bfloat16)) for at in (16 + 4 * MASK + MASK, -1)
    )
    np.testing.assert_allclose(found[0], seen + 3.7 * (seen - unseen), rtol=1e-5, atol=1e-6)
