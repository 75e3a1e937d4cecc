"""Filters and draws. Oracles: NumPy on sorted probabilities, exact probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.ops.categorical import BLOCK, NEG_INFINITY, Filters, draw, filter_logits, nearest
from tests.compiling import optimized
from tests.statistics import assert_fits

LOGITS = jax.device_put(2 * np.random.default_rng(0).standard_normal((50, 12), np.float32))
_drawn = jax.jit(draw)


@functools.partial(optimized, static_argnames="count")
def _at_once(key, logits, count):
    """`count` draws from the same logits, with one key."""
    return draw(key, jnp.broadcast_to(logits, (count, *logits.shape)))


@functools.partial(optimized, static_argnames="batch_size")
def _one_by_one(keys, logits, batch_size):
    """A draw from the same logits for each key."""
    return jax.lax.map(lambda key: draw(key, logits), keys, batch_size=batch_size)


def _kept(logits):
    return np.asarray(logits) > 0.5 * NEG_INFINITY


@pytest.mark.parametrize("filters", [Filters(), SamplerConfig(4)], ids=["alone", "of a sampler"])
def test_off_is_no_operation(filters):
    """Also for the settings that carry these fields: a pass over all logits takes longer than a draw."""
    assert not jax.make_jaxpr(lambda logits: filter_logits(logits, filters))(LOGITS).eqns


@pytest.mark.parametrize("k", [1, 5, 12, 99])
def test_top_k_keeps_the_k_largest(k):
    kept = filter_logits(LOGITS, Filters(top_k=k))
    order = np.argsort(-np.asarray(LOGITS), axis=-1)
    for row, ranks in zip(_kept(kept), order, strict=True):
        assert set(np.flatnonzero(row)) == set(ranks[:k].tolist())
    np.testing.assert_array_equal(np.asarray(kept)[_kept(kept)], np.asarray(LOGITS)[_kept(kept)])


def test_top_k_keeps_ties_with_the_kth():
    assert _kept(filter_logits(jnp.array([1.0, 3.0, 1.0, 0.0]), Filters(top_k=2))).tolist() == [
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("filters", [Filters(top_k=5), Filters(top_p=0.9)], ids=["top_k", "top_p"])
def test_no_filter_sorts_whole_rows(filters):
    """Oracle: the compiled program. On a CPU, sorts take 46 times as long for top-k, 7 times for top-p."""
    program = jax.jit(functools.partial(filter_logits, filters=filters)).lower(LOGITS)
    assert " sort(" not in program.compile().as_text()


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    probs = np.exp(np.asarray(LOGITS, np.float64))
    probs /= probs.sum(axis=-1, keepdims=True)
    for row, prob in zip(_kept(filter_logits(LOGITS, Filters(top_p=p))), probs, strict=True):
        inside = prob[row].sum()
        assert inside >= p - 1e-6
        assert inside - prob[row].min() < p + 1e-6, "the least probable one would not be needed"
        assert prob[row].min() >= prob[~row].max(initial=0)


def test_top_p_keeps_as_much_with_numbers_of_64_bits():
    """A network of one's own under x64, or NumPy's temperatures. Oracle: the same numbers of 32 bits."""
    logits = np.asarray(LOGITS)
    expected = _kept(filter_logits(logits, Filters(temperature=0.5, top_p=0.5)))
    filters = Filters(temperature=np.float64(0.5), top_p=np.float64(0.5))
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            found = filter_logits(jnp.asarray(logits, dtype), filters)
            assert found.dtype == dtype
            np.testing.assert_array_equal(_kept(found), expected)


@pytest.mark.parametrize("p", [1e-6, 0.25, 0.5, 0.75, 0.99])
def test_top_p_keeps_the_first_of_equal_ones(p):
    """Oracle: a stable sort and a sum along it. The even rows' sums are exact, and reach p exactly."""
    uneven, one = [1, 4, 1, 3, 3, 3, 3, 3], [0, 0, 0, 9, 0, 0, 0, 0]
    odds = np.array([uneven, [2] * 8, [0, 0, 1, 0, 1, 0, 0, 0], one, [1, 8, 4, 0, 2, 0, 1, 0]])
    order = np.argsort(-odds, axis=-1, kind="stable")
    shares = np.take_along_axis(odds / odds.sum(axis=-1, keepdims=True), order, axis=-1)
    expected = np.zeros(odds.shape, bool)
    np.put_along_axis(expected, order, shares.cumsum(axis=-1) - shares <= p, axis=-1)
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(odds), NEG_INFINITY).astype(np.float32)
    kept = filter_logits(jnp.asarray(logits), Filters(top_p=p))
    np.testing.assert_array_equal(_kept(kept), expected)


@pytest.mark.parametrize("budget", [0.0, 0.2499, 0.25, 0.6, 2.0])
def test_the_nearest_are_taken_as_long_as_their_weights_fit(budget):
    """Oracle: a stable sort and a sum along it. Distances may be equal, 0 or, by rounding, below 0."""
    rng = np.random.default_rng(3)
    distance = rng.integers(-2, 5, (40, 9)) / np.float32(4)
    distance[rng.random(distance.shape) < 0.1] = -0.0
    weight = rng.integers(0, 4, distance.shape) / np.float32(16)  # sums are exact
    order = np.argsort(distance, axis=-1, kind="stable")
    fits = np.take_along_axis(weight, order, axis=-1).cumsum(axis=-1) <= budget
    expected = np.zeros(distance.shape, bool)
    np.put_along_axis(expected, order, fits, axis=-1)
    found = jax.jit(nearest, static_argnums=2)(distance, weight, budget)
    np.testing.assert_array_equal(found, expected)


def test_top_k_comes_before_top_p():
    """After top-2 of (0.5, 0.3, 0.2) the first has 0.625: enough for p = 0.6, not for the whole."""
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    assert _kept(filter_logits(logits, Filters(top_k=2, top_p=0.6))).tolist() == [
        True,
        False,
        False,
    ]
    assert _kept(filter_logits(logits, Filters(top_p=0.6))).tolist() == [True, True, False]


def test_temperature_divides_and_zero_is_greedy():
    np.testing.assert_allclose(
        filter_logits(LOGITS, Filters(temperature=0.5)), 2 * LOGITS, rtol=1e-6
    )
    greedy = filter_logits(LOGITS, Filters(temperature=0.0))
    assert np.all(_kept(greedy).sum(axis=-1) == 1)
    np.testing.assert_array_equal(jnp.argmax(greedy, axis=-1), jnp.argmax(LOGITS, axis=-1))
    assert Filters(temperature=1.1e-38).greedy, "float32 cannot tell it from 0"
    assert not Filters(temperature=1.2e-38).greedy


@pytest.mark.parametrize("shift", [-9.0, 0.0, 9.0])
@pytest.mark.parametrize("others", [{}, {"top_k": 2}, {"top_p": 0.9}], ids=str)
@pytest.mark.parametrize("temperature", [1e-5, 1e-20, 1e-37, 1e-38, 1e-44, 1e-300])
def test_low_temperatures_are_greedy(temperature, others, shift):
    """The two largest are 0.01 apart: exp(-0.01 / 1e-5) is 0. Divided, logits would overflow float32, or fall
    below the value for the impossible."""
    logits = shift + jnp.array([-2.0, 0.0, -0.01, NEG_INFINITY])
    kept = filter_logits(logits, Filters(temperature=temperature, **others))
    drawn = _drawn(jax.random.key(0), jnp.broadcast_to(kept, (1000, 4)))
    assert np.unique(drawn).tolist() == [1]


def test_a_high_temperature_does_not_make_the_impossible_possible():
    logits = jnp.array([0.0, NEG_INFINITY])
    assert float(filter_logits(logits, Filters(temperature=1e6))[1]) == NEG_INFINITY


@pytest.mark.parametrize("vocab", [3, 1100])
@pytest.mark.parametrize(
    "filters",
    [{}, {"temperature": 0.9}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.5}],
    ids=str,
)
def test_where_all_logits_are_far_below_0_the_largest_is_drawn(filters, vocab):
    """As guidance makes them; -1e6 stands for the impossible. Others were drawn, or ids beyond the last."""
    for largest in (-6e5, -2e6):
        logits = np.full((200, vocab), largest - 1e5, np.float32)
        logits[:, 2] = largest
        drawn = _drawn(jax.random.key(7), filter_logits(jnp.asarray(logits), Filters(**filters)))
        assert np.unique(drawn).tolist() == [2]


def test_what_pads_the_last_block_is_never_drawn_whatever_the_logits():
    logits = np.full((200, 1100), -3e6, np.float32)
    assert np.asarray(_drawn(jax.random.key(7), logits)).max() < 1100


def test_draws_have_their_probabilities_rare_ones_too():
    """n = 2,000,000 of p = 0.9 … 2e-5: 40 of the rarest expected, standard error 6.3; seed 1."""
    probs = np.array([0.9, 0.09, 0.009, 9.8e-4, 2e-5])
    probs[0] += 1 - probs.sum()
    tokens = _at_once(jax.random.key(1), np.log(probs).astype(np.float32), 2_000_000)
    assert tokens.dtype == jnp.int32
    assert_fits(np.bincount(tokens, minlength=5), probs)


def test_many_rare_tokens_together():
    """1,023 tokens of 4.9e-6 share 0.5 %: n = 20,000, 100 expected, standard error 10; seed 2."""
    rare = 0.005 / 1023
    logits = np.full(1024, np.log(rare), np.float32)
    logits[7] = np.log(0.995)
    tokens = np.asarray(_at_once(jax.random.key(2), logits, 20_000))
    found = (tokens != 7).sum()
    assert abs(found - 100) < 4 * np.sqrt(100 * 0.995)


@pytest.mark.parametrize("vocab", [1025, 1408])
def test_draws_in_two_levels_have_their_probabilities(vocab):
    """n = 100,000 over peaked logits, row by row; the merged tail is one outcome; seed 5."""
    logits = 3 * jax.random.normal(jax.random.key(0), (vocab,))
    keys = jax.random.split(jax.random.key(5), 100_000)
    tokens = np.asarray(_one_by_one(keys, logits, 500))
    probs = np.exp(np.asarray(logits, np.float64))
    assert_fits(np.bincount(tokens, minlength=vocab), probs / probs.sum())


@pytest.mark.parametrize("vocab", [200, 2048])
def test_narrow_logits_are_drawn_as_wide_ones(vocab):
    """Of equal bfloat16 sums the first would be drawn. Oracle: the same logits in float32."""
    narrow = jnp.zeros((100, vocab), jnp.bfloat16)
    expected = _drawn(jax.random.key(7), narrow.astype(jnp.float32))
    np.testing.assert_array_equal(_drawn(jax.random.key(7), narrow), expected)


def test_impossible_blocks_are_never_drawn():
    logits = np.full((200, 2048), NEG_INFINITY, np.float32)
    logits[:, 1500] = 0.0
    assert (np.asarray(_drawn(jax.random.key(7), logits)) == 1500).all()


def test_draws_use_noise_with_its_whole_tail():
    """The default mode's Gumbel noise ends near 16.6 in float32 (arXiv 2409.02908)."""
    key, logits = jax.random.key(3), jnp.zeros((64, 8))
    high = jax.random.gumbel(key, logits.shape, mode="high")
    np.testing.assert_array_equal(draw(key, logits), jnp.argmax(high, axis=-1))
    default = jax.random.categorical(key, logits)
    assert bool(jnp.any(draw(key, logits) != default))
    low = jax.random.gumbel(key, logits.shape, mode="low")
    np.testing.assert_array_equal(default, jnp.argmax(low, axis=-1))


def _peaked(tail):
    """GPT-2's 50,257 tokens: one has `1 - tail`, the others share the rest; logits and exact p."""
    probs = np.full(50_257, tail / 50_256)
    probs[0] = 1 - tail
    logits = np.log(probs / probs[0]).astype(np.float32)
    exact = np.exp(logits.astype(np.float64))
    return logits, exact / exact.sum()


@pytest.fixture(scope="module")
def low_noise():
    """Every value that the default Gumbel noise takes in float32, in order, each equally likely.

    It is a function of the 23 random bits of a mantissa. That these are the values that JAX draws is
    checked on 2,000,000 draws, seed 8.
    """
    uniform = np.arange(2**23, dtype=np.float32) / np.float32(2**23)
    uniform[0] = np.finfo(np.float32).tiny
    noise = np.asarray(jax.jit(lambda u: -jnp.log(-jnp.log(u)))(uniform))
    drawn = np.asarray(jax.random.gumbel(jax.random.key(8), (2_000_000,), mode="low"))
    nearest = noise[np.clip(np.searchsorted(noise, drawn), 0, len(noise) - 1)]
    np.testing.assert_allclose(drawn, nearest, rtol=1e-5, atol=1e-5)
    return noise


@pytest.mark.parametrize(("tail", "share"), [(0.01, 0.85), (0.0018, 0.25)])
def test_default_draws_of_a_peaked_vocabulary_flatter_the_perplexity(low_noise, tail, share):
    """Exact cross-entropy of default draws: a sum over the peak's noise, against the tail's largest noise.

    No sampling, hence no error: at most `share` of the entropy of the distribution that draws should have.
    (20,000 draws of the first case, seed 0: 0.125 nats instead of 0.164, standard error 0.011.) In the second
    nine tenths of the rare tokens are lost.
    """
    logits, p = _peaked(tail)
    entropy = -(p * np.log(p)).sum()
    # The peak stands first, so that it wins ties.
    reached = np.searchsorted(low_noise + logits[1], low_noise + logits[0], side="right")
    peak_wins = ((reached / len(low_noise)) ** (len(p) - 1)).mean()
    drawn = -(peak_wins * np.log(p[0]) + (1 - peak_wins) * np.log(p[1]))
    assert 0 < drawn < share * entropy
    assert tail > 0.005 or 1 - peak_wins < 0.2 * tail


@pytest.mark.parametrize(("tail", "seed"), [(0.01, 9), (0.002, 10)])
def test_our_draws_of_a_peaked_vocabulary_do_not(tail, seed):
    """n = 20,000 over 50,257 tokens: within three standard errors, 0.011 and 0.006 nats.

    All blocks but the first consist of rare tokens; most of the rare ones that are drawn lie there.
    """
    logits, p = _peaked(tail)
    entropy = -(p * np.log(p)).sum()
    error = np.sqrt(((p * np.log(p) ** 2).sum() - entropy**2) / 20_000)
    keys = jax.random.split(jax.random.key(seed), 20_000)
    tokens = np.asarray(_one_by_one(keys, logits, 64))
    drawn = -np.log(p[tokens]).mean()
    assert abs(drawn - entropy) < 3 * error
    assert error < 0.08 * entropy + 0.004
    assert (tokens >= BLOCK).sum() > 0.8 * (tokens != 0).sum() > 0


def test_impossible_entries_are_never_drawn():
    logits = jnp.array([NEG_INFINITY, 0.0, NEG_INFINITY])
    assert bool(jnp.all(_drawn(jax.random.key(4), jnp.broadcast_to(logits, (10_000, 3))) == 1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-1.0, -1e-300, np.nan, np.inf, "warm", None)),
        *(("top_k", value) for value in (-1, 2.5, 2.0, np.nan, True, "3", None)),
        *(("top_p", value) for value in (1.5, 0.0, -0.1, np.nan, np.inf, None)),
    ],
)
def test_values_that_cannot_work_are_named(name, value):
    with pytest.raises(ConfigError, match=f"{name} must .* not "):
        Filters(**{name: value})
