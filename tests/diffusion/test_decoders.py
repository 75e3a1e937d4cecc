"""What decoders accept and remask. Oracles: the definitions, written out in NumPy.

The law of whole generations is in tests/laboratory/test_decoders.py.
"""

import importlib
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sdtt_jax.diffusion.decoders import DECODERS, parse_mode
from sdtt_jax.diffusion.decoders.base import Helper
from sdtt_jax.diffusion.decoders.confident import Confidence
from sdtt_jax.diffusion.decoders.remasking import Remdm, remask_chances
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import (
    SamplerConfig,
    plan_generation,
    prior_sample,
    sample,
)
from sdtt_jax.diffusion.schedule import ScheduleConfig, make_schedule
from sdtt_jax.errors import ConfigError
from sdtt_jax.ops.noise import draw_noise
from tests.worlds import LENGTH, MASK, TableDenoiser, random_table

KEY = jax.random.key(0)
OPTIONS = {
    "learnt": ":counts=1/1/1/0/0/0",
    "remdm": ":eta=0.9",
    "remdm-confidence": ":eta=0.9",
    "blocks": ":length=1,cache=none",
    "refine": ":window=2,threshold=0",
}
LOG_PROBS = np.float32(
    special.log_softmax([[2.0, 1.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]], axis=-1)
)
DUE = np.array([[True, True, True]])


class Larger(TableDenoiser):
    """A denoiser with another vocabulary."""

    mask_id = MASK + 1


class Coupled(TableDenoiser):
    """A denoiser that sees noise."""

    noise_kind = "full"


class Causal:
    """The part of a causal network that is looked at before anything is computed."""

    config = type("Config", (), {"vocab_size": MASK})


_sample = jax.jit(sample, static_argnames=("diffusion", "config", "keep_states"))


def accepted(
    mode: str, log_probs: jax.Array = LOG_PROBS, due: jax.Array = DUE, calls_left: int = 2
):
    _, _, decoder, options, _ = parse_mode(mode)
    pick = decoder.pick(options, KEY, calls_left)
    return np.asarray(pick.accept(pick.score(log_probs)[None], due))[0].tolist()


def test_confidence_takes_the_surest_share_of_what_is_masked():
    assert accepted("confidence") == [True, True, False]
    assert accepted("confidence", calls_left=3) == [False, True, False]
    assert accepted("confidence", due=jnp.array([[True, False, True]])) == [True, False, False]


@pytest.mark.parametrize("score", ["probability", "margin", "entropy"])
def test_scores_are_what_they_are_called_also_with_an_impossible_token(score):
    ordered = np.sort(probs := np.exp(np.asarray(LOG_PROBS, np.float64)), axis=-1)
    expected = {
        "probability": np.log(ordered[:, -1]),
        "margin": np.log(np.maximum(ordered[:, -1] - ordered[:, -2], 1e-4 * ordered[:, -1])),
        "entropy": (probs * np.log(probs)).sum(axis=-1),
    }[score]
    with_one = np.append(LOG_PROBS, np.full((len(LOG_PROBS), 1), -np.inf, np.float32), axis=-1)
    found = DECODERS["confidence"].pick(Confidence(score), KEY, 1).score(with_one)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_threshold_takes_all_that_is_sure_enough_and_at_least_one():
    assert accepted("confidence:threshold=0.6") == [True, True, False]
    assert accepted("confidence:threshold=0.99") == [False, True, False]


def test_noise_in_the_order_lets_nothing_pass_a_threshold_that_is_not_sure():
    """It decides only where nothing is sure: then one position, whichever the noise puts first."""
    for scale in ("0.5", "1e6"):
        assert accepted(f"confidence:threshold=0.6,order_temperature={scale}") == [
            True,
            True,
            False,
        ]
        assert sum(accepted(f"confidence:threshold=0.99,order_temperature={scale}")) == 1


def test_an_order_of_high_temperature_is_random():
    """n = 3,000 draws of one of three positions; standard error 8.6e-3, seed 5."""
    options = Confidence(order_temperature=1e6)
    pick = DECODERS["confidence"].pick(options, jax.random.key(5), 3)
    score = jnp.broadcast_to(pick.score(LOG_PROBS), (3000, 3))
    due = jnp.ones((3000, 3), bool)
    found = np.asarray(pick.accept(score, due))
    assert (found.sum(axis=1) == 1).all()
    np.testing.assert_allclose(found.mean(axis=0), 1 / 3, atol=4 * 8.6e-3)


@pytest.mark.parametrize("mode", ["confidence", "entropy-bounded:bound=0"])
def test_what_only_rounding_tells_apart_is_ordered_at_random(mode):
    """n = 3,000 draws of one of three positions; standard error 8.6e-3, seed 6.

    As in the fully masked text of a network with rotated attention: equal probabilities everywhere.
    """
    (_, _, decoder, options, _), due = parse_mode(mode), jnp.ones((3000, 3), bool)
    score = jnp.broadcast_to(-1.6185 + jnp.array([2e-7, 0.0, 5e-7]), (3000, 3))
    found = np.asarray(decoder.pick(options, jax.random.key(6), 3).accept(score, due))
    assert (found.sum(axis=1) == 1).all()
    np.testing.assert_allclose(found.mean(axis=0), 1 / 3, atol=4 * 8.6e-3)


def test_entropies_are_bounded_by_their_sum_without_the_largest():
    entropies = -(jnp.exp(LOG_PROBS) * LOG_PROBS).sum(axis=-1)  # 0.83, 0.37, 1.10
    between = float(entropies[1] + entropies[0])
    assert accepted("entropy-bounded:bound=0") == [False, True, False]
    assert accepted("entropy-bounded:bound=0.5") == [True, True, False]
    assert accepted(f"entropy-bounded:bound={between - 0.01}") == [True, True, False]
    assert accepted(f"entropy-bounded:bound={between + 0.01}") == [True, True, True]


@pytest.mark.parametrize(
    "options",
    [Remdm(0.1), Remdm(1.0), Remdm(0.4, "rescale"), Remdm(1.0, "forward-backward")],
)
def test_remasking_leaves_the_marginals_right(options):
    """ReMDM's theorem: alpha_t (1 - sigma) + (1 - alpha_t) reveal = alpha_s."""
    t = jnp.linspace(0.05, 1.0, 20)
    s = t - 0.05
    reveal, sigma = remask_chances(options, t, s)
    np.testing.assert_allclose((1 - t) * (1 - sigma) + t * reveal, 1 - s, atol=1e-6)
    assert bool(((sigma >= 0) & (sigma <= jnp.minimum(options.eta, 1))).all())


@pytest.mark.parametrize("mode", ["confidence", "entropy-bounded", "remdm", "remdm-confidence"])
def test_what_is_given_stays_and_nothing_is_left_masked(mode):
    diffusion, params = MaskedDiffusion(TableDenoiser(), make_schedule()), random_table(2)
    x_init = np.full((64, LENGTH), MASK, np.int32)
    x_init[:, 0] = 1
    config = SamplerConfig(6, mode=mode + OPTIONS.get(mode, ""))
    state, states = _sample(diffusion, params, KEY, x_init, config, keep_states=True)
    assert (np.asarray(states)[:, :, 0] == 1).all()
    assert (np.asarray(state.x) != MASK).all()


def test_remdm_masks_tokens_again_and_the_others_never_do():
    diffusion, params = MaskedDiffusion(TableDenoiser(), make_schedule()), random_table(2)
    x_init = prior_sample(64, LENGTH, MASK)
    for mode in (name for name, decoder in DECODERS.items() if not decoder.helper):
        options = OPTIONS.get(mode, "")
        config = SamplerConfig(6, mode=mode + options)
        _, states = _sample(diffusion, params, KEY, x_init, config, keep_states=True)
        states = np.asarray(states)
        again = (states[:-1] != MASK) & (states[1:] == MASK)
        assert bool(again.any()) == mode.startswith("remdm"), mode


def test_fewer_calls_are_made_where_nothing_is_left_to_reveal():
    diffusion, params = MaskedDiffusion(TableDenoiser(), make_schedule()), random_table(2)
    config = SamplerConfig(8, mode="entropy-bounded:bound=100")
    state, _ = _sample(diffusion, params, KEY, prior_sample(4, LENGTH, MASK), config)
    assert int(state.nfe) == 1


def test_a_decoder_is_a_module_of_at_most_150_lines():
    """So is a module of several decoders, without what decoders share."""
    modules = {row.options.__module__ for row in DECODERS.values()}
    for module in modules:
        source = inspect.getsource(importlib.import_module(module))
        assert len(source.splitlines()) <= 150, module


@pytest.mark.parametrize(
    ("mode", "helper", "said"),
    [
        (
            "speculative",
            None,
            "mode=speculative needs another model; pass a causal model or a denoiser as its helper",
        ),
        ("grid", Helper({}, TableDenoiser()), "mode=grid uses no other model"),
        ("remdm:eta=0.1,stop=eos:9999", None, "tokens of this model are 0 to"),
        ("skeleton", Helper({}, Larger()), "needs a causal model, but the helper is a denoiser"),
        ("skeleton:every=4", Helper({}, Causal(), 0), "every=4 is larger than the text's 3 tokens"),
        (
            "speculative",
            Helper({}, Larger()),
            "The helper has a vocabulary of 4 tokens, the model of 3",
        ),
        ("staged", Helper({}, Coupled()), "calls its helper without noise, but the helper was"),
        ("speculative", Helper({}, Coupled()), "calls its helper without noise, but the helper"),
    ],
)
def test_what_a_decoder_cannot_be_served_with_is_said_before_anything_is_compiled(
    mode, helper, said
):
    diffusion, config = (
        MaskedDiffusion(TableDenoiser(), make_schedule()),
        SamplerConfig(4, mode=mode),
    )
    with pytest.raises(ConfigError, match=said):
        sample(diffusion, {}, KEY, prior_sample(1, LENGTH, MASK), config, helper=helper)


@pytest.mark.parametrize("name", DECODERS)
def test_given_noise_decides_the_text_or_is_refused(name):
    """Oracle: the same noise with another key."""
    diffusion, x_init = MaskedDiffusion(TableDenoiser(), make_schedule()), prior_sample(64, 3, MASK)
    noise = draw_noise(KEY, (64, 3), MASK, "full")
    config = SamplerConfig(6, mode=name + OPTIONS.get(name, ""))
    if all(getattr(DECODERS[name], part) is None for part in ("pick", "redo", "step")):
        texts = [
            _sample(diffusion, random_table(2), key, x_init, config, noise=noise)[0].x
            for key in jax.random.split(KEY)
        ]
        np.testing.assert_array_equal(*texts)
    else:
        with pytest.raises(ConfigError, match=f"mode={name}.* is not determined by the noise"):
            plan_generation(diffusion, KEY, x_init, config, noise)


@pytest.mark.parametrize("name", DECODERS)
def test_a_grid_of_times_is_for_the_decoders_that_take_steps_on_it(name):
    """The others passed over it, and results recorded it. Oracle: which samplers of the papers have times."""
    mode = name + OPTIONS.get(name, "")
    if name in ("grid", "remdm", "remdm-confidence"):
        assert SamplerConfig(6, "cosine", mode=mode).time_grid == "cosine"
    else:
        with pytest.raises(ConfigError, match="time_grid=cosine has no effect"):
            SamplerConfig(6, "cosine", mode=mode)


@pytest.mark.parametrize("mode", ["remdm", "remdm-confidence"])
@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        ("log-linear", [1.0, 0.75, 0.5, 0.25, 0.2, 0.2, 0.2, 0.2]),
        ("geometric", [1.0, 0.2, 0.2, 0.2, 0.098, 0.042, 0.018, 0.008]),
    ],
)
def test_in_a_loop_the_network_is_told_the_noise_of_what_is_masked(mode, kind, shares):
    """Half of the range is the loop; in the rest, the share falls from 1 to 0.2 and on to 0 twice as fast.

    By hand, for `1 - exp(-sigma)` over that at time 1. `geometric` masks 63 % there, yet a generation begins
    with all masked. 512 texts, 4 standard errors of the share that is masked: 0.05.
    """
    heard = []

    class Listening(TableDenoiser):
        def hidden(self, params, tokens, sigma=None):
            jax.debug.callback(lambda sigma: heard.append(float(sigma[0])), sigma, ordered=True)
            return super().hidden(params, tokens, sigma)

    diffusion = MaskedDiffusion(Listening(), make_schedule(ScheduleConfig(kind)))
    config = SamplerConfig(8, mode=f"{mode}:eta=0.3,loop=0.5,still=0.2", final_denoise=False)
    x_init = prior_sample(512, LENGTH, MASK)
    _, states = _sample(diffusion, random_table(2), KEY, x_init, config, keep_states=True)
    masked = (np.asarray(states)[:8] == MASK).mean(axis=(1, 2))
    np.testing.assert_allclose(masked, shares, atol=0.05)
    told = (1 - np.exp(-np.asarray(heard))) / float(diffusion.schedule.move_chance(np.float32(1)))
    np.testing.assert_allclose(told, shares[: len(told)], atol=0.01)
    assert len(told) >= 6


def test_second_thoughts_are_told_the_noise_of_what_is_masked():
    """One token where they look, and two of three, as all are doubted, where they draw.

    Oracle: these shares of what is masked at time 1, by hand; in a cosine schedule they are no times.
    """
    heard = []

    class Listening(TableDenoiser):
        def hidden(self, params, tokens, sigma=None):
            jax.debug.callback(lambda sigma: heard.append(np.asarray(sigma)), sigma, ordered=True)
            return super().hidden(params, tokens, sigma)

    diffusion = MaskedDiffusion(Listening(), make_schedule(ScheduleConfig("cosine", eps=1e-3)))
    config = SamplerConfig(3, mode="refine:rounds=1,window=2,threshold=1")
    jax.block_until_ready(
        _sample(diffusion, random_table(2), KEY, prior_sample(8, LENGTH, MASK), config)
    )
    jax.effects_barrier()
    looked, drawn = heard[-2:]
    assert (looked.shape, drawn.shape) == ((8 * 2,), (8,))
    for sigma, tokens in ((looked, 1), (drawn, 2)):
        masked = (1 - np.exp(-sigma)) / (1 - 1e-3)
        np.testing.assert_allclose(masked, tokens / LENGTH, rtol=1e-4)


def test_second_thoughts_begin_after_the_prompt_and_cost_nothing_where_all_is_given():
    """The window is one token, which is drawn again: two calls, after one for each token of the draft."""
    model, table = MaskedDiffusion(TableDenoiser(), make_schedule()), random_table(2)
    config = SamplerConfig(3, mode="refine:rounds=1,window=1,threshold=1")
    for given, calls, changed in ((1, 4, 1), (2, 3, 2), (3, 0, None)):
        x_init = np.where(np.arange(LENGTH) < given, 0, MASK).astype(np.int32)[None].repeat(64, 0)
        state, states = _sample(model, table, KEY, x_init, config, keep_states=True)
        again = (states[2] != states[3]).any(axis=0)
        assert np.flatnonzero(again).tolist() == ([] if changed is None else [changed])
        assert int(state.nfe) == calls


@pytest.mark.parametrize("mode", ["first-hitting", "confidence", "entropy-bounded"])
def test_a_network_is_told_a_finite_noise_where_all_is_masked_in_float32(mode):
    """SEDD's schedule: alpha(1) is exp(-20), and 1 - alpha(1) is 1 in float32."""
    schedule = make_schedule(ScheduleConfig("geometric", sigma_min=1e-4, sigma_max=20.0))
    diffusion = MaskedDiffusion(TableDenoiser(time_scale=0.1), schedule)
    table, x_init = random_table(2), prior_sample(512, LENGTH, MASK)
    state, _ = _sample(diffusion, table, KEY, x_init, SamplerConfig(LENGTH, mode=mode))
    assert len(np.unique(np.asarray(state.x))) > 1


def test_a_loop_stays_where_it_reveals_as_much_as_it_masks_again():
    """The loop is half of the steps; nothing is remasked outside it. Marginals are right throughout."""
    options, grid = Remdm(0.3, loop=0.5, still=0.2), np.linspace(1, 0, 9)
    masked = 1.0
    shares, remasked = [], []
    for t, s in itertools.pairwise(grid):
        reveal, sigma = remask_chances(options, jnp.float32(t), jnp.float32(s))
        masked = masked * (1 - float(reveal)) + (1 - masked) * float(sigma)
        shares.append(masked)
        remasked.append(float(sigma))
    assert masked == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(
        [m for m, r in zip(shares, remasked, strict=True) if r], 0.2, atol=1e-6
    )
    assert sum(r > 0 for r in remasked) in (3, 4)
    assert (np.diff(shares) < 1e-6).all()
