"""Texts in blocks. Oracles: the same calls without a cache; a plain loop over a text's blocks and calls."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sdtt_jax.diffusion.decoders.base import Now, Scene
from sdtt_jax.diffusion.decoders.block_cache import block_states
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.errors import ConfigError
from sdtt_jax.interface import Wrapped
from sdtt_jax.networks import Denoiser, DenoiserConfig
from sdtt_jax.networks.blocks import BlockCausal
from sdtt_jax.networks.llama import LlamaDenoiser
from tests.worlds import noisy_params, small_llama

LENGTH, BLOCK, VOCAB = 12, 4, 20
CONFIG = DenoiserConfig(VOCAB, length=LENGTH, num_layers=2, embed_dim=16, num_heads=2, cond_dim=8)
NETWORK = Denoiser(CONFIG)
LLAMA = small_llama(VOCAB, LENGTH, num_layers=2, rotary_share=0.5)
SHIFTED = LlamaDenoiser(dataclasses.replace(LLAMA.config, shift=True))
PARAMS, KEY = functools.partial(noisy_params, NETWORK, 0), jax.random.key(1)
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH), np.int32)
# Another token is given in each of 16 texts, at the same position.
X_INIT = np.where(np.arange(LENGTH) == 5, np.arange(16)[:, None], VOCAB).astype(np.int32)
_sample = jax.jit(sample, static_argnames=("diffusion", "config", "keep_states"))


@functools.partial(jax.jit, static_argnames="network")
def _hidden(network, params, x):
    return network.hidden(params, x)


@functools.partial(jax.jit, static_argnames="network")
def _logits(network, params, x):
    return network.logits(network.head_params(params), network.hidden(params, x))


@functools.partial(jax.jit, static_argnames="network")
def _decode(network, params, *given):
    return network.decode(params, *given)


def written(network, options, num_steps=6, params=None, x_init=X_INIT, **fields):
    config = SamplerConfig(num_steps, mode=f"blocks:length={BLOCK},cache={options}", **fields)
    diffusion = MaskedDiffusion(network, make_schedule())
    params = PARAMS() if params is None else params
    state, states = _sample(diffusion, params, KEY, x_init, config, keep_states=True)
    return state, np.asarray(states)


@pytest.fixture(scope="module")
def plain():
    return written(BlockCausal(NETWORK, BLOCK), "none")


def test_blocks_are_written_one_after_the_other_and_what_is_given_stays(plain):
    """Two calls for each of three blocks: two of four tokens a call; two and one where one is given."""
    state, states = plain
    left = (states == VOCAB).reshape(8, 16, 3, BLOCK).sum(axis=-1)
    expected = [
        [4, 3, 4],
        [2, 3, 4],
        [0, 3, 4],
        [0, 1, 4],
        [0, 0, 4],
        [0, 0, 2],
        [0, 0, 0],
        [0, 0, 0],
    ]
    np.testing.assert_array_equal(left, np.broadcast_to(np.array(expected)[:, None], left.shape))
    assert (states[:, :, 5] == np.arange(16)).all()
    assert int(state.nfe) == 6


def test_the_prefix_cache_is_exact_for_block_causal_attention(plain):
    """Keys and values of two blocks take one more call each."""
    state, states = written(BlockCausal(NETWORK, BLOCK), "prefix")
    np.testing.assert_array_equal(states, plain[1])
    assert int(state.nfe) == 8


def surest_first(network, x, calls, score="probability", threshold=0, begin=0, params=None):
    """Text by text, `calls` for each block, as arXiv 2502.09992 and 2505.22618 describe it, and the calls."""
    x, made, params = x.copy(), 0, PARAMS() if params is None else params
    for start in range(begin, LENGTH, BLOCK):
        block = range(start, min(start + BLOCK, LENGTH))
        for left in range(calls, 0, -1):
            if not (x[:, block] == VOCAB).any():
                break
            made += 1
            logits = np.asarray(_logits(network, params, x)[..., :VOCAB], np.float64)
            for text, chances in zip(x, special.softmax(logits, axis=-1), strict=True):
                masked = [i for i in block if text[i] == VOCAB]
                first, second = np.sort(chances, axis=-1)[:, :-3:-1].T
                surety = first - second if score == "margin" else first
                sure = sorted(masked, key=lambda i, surety=surety: -surety[i])
                count = -(-len(masked) // left)
                if threshold:
                    count = max(1, (surety[masked] >= threshold).sum())
                for i in sure if left == 1 else sure[:count]:
                    text[i] = chances[i].argmax()
    return x, made


@pytest.mark.parametrize(
    ("score", "threshold"), [("probability", 0), ("margin", 0.3)], ids=["all", "threshold"]
)
def test_it_is_exact_where_the_surest_come_first(score, threshold):
    """A token is given in the first block, whose positions are otherwise all alike."""
    network, x_init = BlockCausal(NETWORK, BLOCK), np.roll(X_INIT, -BLOCK, axis=1)
    expected, made = surest_first(network, x_init, 3, score, threshold)
    options = f"prefix,score={score},threshold={threshold}"
    state, _ = written(network, options, 9, x_init=x_init, temperature=0)
    np.testing.assert_array_equal(state.x, expected)
    assert int(state.nfe) == made + 2


@pytest.mark.parametrize(
    ("network", "options", "fields"),
    [
        (BlockCausal(NETWORK, BLOCK), "prefix", {}),
        (NETWORK, "dual,score=probability", {"temperature": 0}),
        (BlockCausal(NETWORK, BLOCK), "none", {}),
    ],
    ids=["prefix", "dual", "none"],
)
def test_blocks_that_are_given_take_no_call(network, options, fields):
    """A prompt of a block and a half: two blocks are left to write, and one is read into the prefix cache."""
    x_init = np.where(np.arange(LENGTH) < 6, 3, np.full((16, 1), VOCAB)).astype(np.int32)
    state, states = written(network, options, x_init=x_init, **fields)
    assert (states[:3, :, 6:] == VOCAB).all()
    assert (states[-1] < VOCAB).all()
    assert int(state.nfe) == 4 + 2 * (options == "prefix")


@pytest.mark.parametrize(("calls", "threshold"), [(2, 0), (3, 0.12)])
def test_the_surest_of_a_block_come_first(calls, threshold):
    expected, made = surest_first(NETWORK, X_INIT, calls, threshold=threshold)
    options = "none,score=probability" + f",threshold={threshold}" * (threshold > 0)
    state, _ = written(NETWORK, options, 3 * calls, temperature=0)
    np.testing.assert_array_equal(state.x, expected)
    assert int(state.nfe) == made
    assert made < 3 * calls or not threshold, "several are sure enough"


def after_prompt(given):
    """16 texts that begin with so many tokens."""
    return np.where(np.arange(LENGTH) < given, TOKENS[:1], np.full((16, 1), VOCAB)).astype(np.int32)


@pytest.mark.parametrize("given", [1, 3, 6, LENGTH])
def test_blocks_may_be_counted_from_the_end_of_the_prompt(given):
    """As LLaDA counts them; the last is shorter where they do not fit."""
    x_init = after_prompt(given)
    expected, made = surest_first(NETWORK, x_init, 2, begin=given)
    options = "none,start=prompt,score=probability"
    state, _ = written(NETWORK, options, 6, x_init=x_init, temperature=0)
    np.testing.assert_array_equal(state.x, expected)
    assert int(state.nfe) == made


@dataclasses.dataclass(frozen=True)
class SeesNothingLater(Wrapped):
    """Its attention is that of texts in blocks behind a prompt of `prompt` tokens."""

    prompt: int

    def hidden(self, params, tokens, sigma=None):
        del sigma
        number = (jnp.arange(LENGTH) - self.prompt) // BLOCK
        number = jnp.where(jnp.arange(LENGTH) < self.prompt, -1, number)
        return self.network.decode(params, tokens, visible=number[:, None] >= number)[0]

    def decode(self, *arguments):
        return self.network.decode(*arguments)


BEHIND = SeesNothingLater(NETWORK, 5)


@pytest.mark.parametrize("cache", ["prefix", "none"])
def test_a_random_order_is_spread_evenly_over_blocks_behind_a_prompt(cache):
    """Seven tokens behind a prompt of five: a block of four and one of three, in two calls each."""
    state, states = written(BEHIND, f"{cache},start=prompt", x_init=after_prompt(5))
    left = (states == VOCAB).sum(axis=-1)
    np.testing.assert_array_equal(left[:, 0], [7, 5, 3, 1, 0, 0, 0, 0])
    assert (left == left[:, :1]).all()
    assert (states[:3, :, 9:] == VOCAB).all()
    assert int(state.nfe) == 4 + 2 * (cache == "prefix")


def test_the_prefix_cache_holds_the_prompt_too():
    cached, whole = (
        written(BEHIND, f"{cache},start=prompt", x_init=after_prompt(5))[1]
        for cache in ("prefix", "none")
    )
    np.testing.assert_array_equal(cached, whole)


def test_the_shortest_prompt_of_a_batch_counts():
    x_init = np.concatenate([after_prompt(7)[:8], after_prompt(2)[:8]])
    _, states = written(BEHIND, "none,start=prompt", x_init=x_init)
    left = (states == VOCAB).sum(axis=-1)[:, [0, 8]]
    np.testing.assert_array_equal(left.T, [[5, 5, 5, 3, 2, 1, 0, 0], [10, 8, 6, 4, 2, 1, 0, 0]])


def test_a_network_that_predicts_the_next_token_has_that_cache_too():
    """The first of a block comes from the position before it."""
    network, params = BlockCausal(SHIFTED, BLOCK), noisy_params(SHIFTED, 0)
    x_init = np.roll(X_INIT, -BLOCK, axis=1)  # a given token in the first block, as above
    expected, made = surest_first(network, x_init, 2, params=params)
    options = "prefix,score=probability"
    state, _ = written(network, options, params=params, x_init=x_init, temperature=0)
    np.testing.assert_array_equal(state.x, expected)
    assert int(state.nfe) == made + 2


def test_the_dual_cache_is_exact_at_the_first_call_of_each_block_and_not_after_it():
    dual, none = (
        written(NETWORK, f"{cache},score=probability", temperature=0)[1]
        for cache in ("dual", "none")
    )
    np.testing.assert_array_equal(dual[:2], none[:2])
    assert (dual[-1] != none[-1]).any()


@pytest.mark.parametrize("network", [NETWORK, LLAMA], ids=["ours", "llama"])
def test_decoding_with_a_cache_is_the_whole_network(network):
    params = noisy_params(network, 0)
    whole, memory = _decode(network, params, TOKENS)
    np.testing.assert_allclose(whole, _hidden(network, params, TOKENS), atol=1e-5)
    outside = np.arange(LENGTH) // BLOCK != 1
    visible = np.tile(np.append(outside, np.full(BLOCK, True)), (BLOCK, 1))
    block, _ = _decode(network, params, TOKENS[:, 4:8], memory, 4, visible)
    np.testing.assert_allclose(block, whole[:, 4:8], atol=1e-5)


@pytest.mark.parametrize("network", [NETWORK, LLAMA, SHIFTED], ids=["ours", "llama", "shifted"])
def test_a_block_is_read_from_the_dual_cache_as_in_the_whole_text(network):
    """As long as no token has changed since the cache was filled."""
    params, diffusion = noisy_params(network, 0), MaskedDiffusion(network, make_schedule())
    scene = Scene(diffusion, params, None, SamplerConfig(1), jnp.array([1.0, 0.0]))
    whole = np.asarray(_hidden(network, params, TOKENS))
    _, memory = _decode(network, params, TOKENS)

    @jax.jit
    def block(start, first):
        now = Now(TOKENS, TOKENS < 0, TOKENS < 0, jnp.int32(1), memory)
        return block_states("dual", scene, now, start, BLOCK, first)[0]

    for start, first in itertools.product((0, 4, 8), (True, False)):
        hidden = block(jnp.int32(start), jnp.array(first))
        np.testing.assert_allclose(hidden, whole[:, start : start + BLOCK], atol=1e-5)


def test_a_block_causal_network_may_predict_the_next_token():
    """Its state at i is the one computed at i - 1, which used to be left where it was."""
    params = noisy_params(SHIFTED, 0)
    moved, kept = (
        np.asarray(_hidden(BlockCausal(n, BLOCK), params, TOKENS)) for n in (SHIFTED, LLAMA)
    )
    np.testing.assert_allclose(moved[:, 1:], kept[:, :-1], atol=1e-6)


def test_a_block_does_not_see_what_follows_it():
    network, changed = BlockCausal(NETWORK, BLOCK), TOKENS.copy()
    changed[:, 8:] = 0
    before, after = (np.asarray(_hidden(network, PARAMS(), x)) for x in (TOKENS, changed))
    np.testing.assert_array_equal(before[:, :8], after[:, :8])
    assert (np.abs(before[:, 8:] - after[:, 8:]).max(axis=-1) > 0).any()


@pytest.mark.parametrize(
    ("mode", "steps", "fields", "said"),
    [
        ("blocks:length=5", 6, {}, "blocks of 5 do not divide 12 tokens"),
        ("blocks:length=4", 7, {}, "num_steps=7 must be a multiple of the 3 blocks; try 6"),
        ("blocks:length=4", 1, {}, "num_steps=1 must be a multiple of the 3 blocks; try 3"),
        ("blocks:length=4", 6, {"time_conditioned": True}, "neither sees time or noise nor exits"),
        ("blocks:length=4", 6, {"causal": True}, "attends in both directions"),
        ("blocks:length=4,threshold=0.9", 6, {}, "need a score, such as score=probability"),
        ("blocks:length=4,score=surest", 6, {}, "score"),
        ("blocks:length=4,start=bos", 6, {}, "start"),
        ("blocks:length=4,score=margin,threshold=2", 6, {}, "threshold"),
    ],
)
def test_what_cannot_be_written_in_blocks_is_named(mode, steps, fields, said):
    network = LLAMA if "causal" in fields else NETWORK
    network = dataclasses.replace(network, config=dataclasses.replace(network.config, **fields))
    diffusion = MaskedDiffusion(network, make_schedule())
    with pytest.raises(ConfigError, match=said):
        sample(diffusion, PARAMS(), KEY, X_INIT, SamplerConfig(steps, mode=mode))


class Foreign:
    """A user's network: nothing but the names of `DenoiserLike`."""

    mask_id, padded_vocab = VOCAB, VOCAB + 1

    def hidden(self, params, tokens, sigma=None):
        del sigma
        return params[tokens]

    def head_params(self, params):
        del params
        return ()

    def logits(self, params, hidden):
        del params
        return hidden


def test_a_users_own_network_writes_blocks_without_a_cache():
    """Which is what the error about a cache advises."""
    diffusion, table = MaskedDiffusion(Foreign(), make_schedule()), np.eye(VOCAB + 1)
    with pytest.raises(ConfigError, match="take cache=none"):
        sample(diffusion, table, KEY, X_INIT, SamplerConfig(6, mode="blocks:length=4"))
    config = SamplerConfig(6, mode="blocks:length=4,cache=none")
    write = functools.partial(sample, diffusion, config=config)
    state, _ = jax.eval_shape(lambda table: write(table, key=KEY, x_init=X_INIT), table)
    assert state.x.shape == X_INIT.shape
