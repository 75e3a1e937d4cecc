"""Noise-coupled distillation. Oracles: the enumerated laws of the sampler's tests, a trajectory by hand."""

import functools

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from sdtt_jax import objectives
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, plan_generation, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.coupled import CoupledDistillConfig, coupled_terms, states_along
from sdtt_jax.distillation.trajectories import (
    Teacher,
    Trajectories,
    hindsight_noise,
    noise_of,
    trajectory_end,
)
from sdtt_jax.errors import ConfigError
from sdtt_jax.networks.config import CoupledConfig, NoiseConfig
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.objectives import coupled_loss
from tests.worlds import (
    LENGTH,
    MASK,
    VOCAB,
    TableDenoiser,
    as_model,
    noisy_params,
    random_table,
    tiny_network,
)

TEACHER, TABLE = MaskedDiffusion(TableDenoiser(), make_schedule()), random_table(1)
NETWORK = CoupledDenoiser(CoupledConfig.of(tiny_network().config, NoiseConfig(hidden_dim=8)))
# Of the seeds 3 to 9, this one makes the most of its noise: ten different texts of 32.
STUDENT = MaskedDiffusion(NETWORK, make_schedule())
PARAMS = functools.partial(noisy_params, NETWORK, 9)
INDEX, NOISE_KEY, KEY = np.arange(32), jax.random.key(5), jax.random.key(0)
# Generations of one length, trajectories and states of one config: each is one program.
CONFIG = SamplerConfig(LENGTH, mode="first-hitting", temperature=0.0)
ONE_SHOT, CALLS = CoupledDistillConfig(4, full_share=0.25), SamplerConfig(4, mode="first-hitting")
# Each is compiled as a whole: running operation by operation takes three times as long.
_end = jax.jit(trajectory_end, static_argnames=("teacher", "config"))
_noise = jax.jit(noise_of, static_argnames=("diffusion", "length"))
_states = jax.jit(states_along, static_argnames=("diffusion", "config", "round"))
_terms = jax.jit(coupled_terms, static_argnames=("diffusion", "config", "round"))
_hindsight = jax.jit(hindsight_noise, static_argnames=("teacher", "config"))
_sample = jax.jit(sample, static_argnames=("diffusion", "config"))
_plan = jax.jit(plan_generation, static_argnames=("diffusion", "config"))


@functools.cache
def keys():
    """Those of the objective's noise, so that one program draws it for all tests."""
    return jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))(NOISE_KEY, INDEX)


def test_a_sampler_draws_a_seeing_networks_noise_once():
    """The plan holds the noise of all calls; another key gives other texts."""
    x_init = prior_sample(32, LENGTH, MASK)
    plan = _plan(STUDENT, KEY, x_init, CONFIG)
    assert plan.noise.token.shape == (32, LENGTH, VOCAB)
    texts = [
        np.asarray(_sample(STUDENT, PARAMS(), jax.random.key(s), x_init, CONFIG)[0].x)
        for s in (0, 0, 1)
    ]
    np.testing.assert_array_equal(texts[0], texts[1])
    assert (texts[0] != texts[2]).any()
    plain = jax.eval_shape(lambda key: plan_generation(TEACHER, key, x_init, CONFIG), KEY)
    assert plain.noise is None


def test_all_ways_to_generate_show_a_network_the_noise_of_the_plan():
    """Oracle: each call by hand, with the noise as it was drawn."""
    key = jax.random.key(7)
    x = x_init = prior_sample(32, LENGTH, MASK)
    plan = jax.device_get(_plan(STUDENT, key, x_init, CONFIG))
    for call in range(LENGTH):
        said = np.asarray(_says(x, plan.noise)).argmax(axis=-1)
        x = np.where(plan.call == call, said, x).astype(np.int32)
    model = as_model(NETWORK, PARAMS())
    np.testing.assert_array_equal(_sample(STUDENT, PARAMS(), key, x_init, CONFIG)[0].x, x)
    np.testing.assert_array_equal(model.denoise(key, x_init, CONFIG).x, x)
    *_, last = model.states(key, x_init, CONFIG)
    np.testing.assert_array_equal(last.x, x)


def test_one_shot_states_lie_along_the_order_and_ask_for_all_that_is_masked():
    noise, tokens = _noise(STUDENT, keys(), LENGTH), np.zeros((len(keys()), LENGTH), np.int32)
    states = jax.device_get(_states(STUDENT, Trajectories(noise, tokens), KEY, ONE_SHOT, 1))
    masked, order = states.x_t == MASK, np.asarray(noise.order)
    np.testing.assert_array_equal(states.reached, masked)
    np.testing.assert_array_equal(states.x_s, tokens)
    counts = np.bincount(masked.sum(axis=1), minlength=LENGTH + 1)
    # A quarter of 32 states is full; the rest, 24, is spread evenly over 1, 2 and 3 masked positions.
    np.testing.assert_allclose(counts, [0, 8, 8, 16], atol=1)
    lowest_shown = np.where(masked, 2.0, order).min(axis=1)
    assert (np.where(masked, order, -1.0).max(axis=1) < lowest_shown).all()


def test_a_round_asks_for_the_next_calls_and_divides_their_number():
    config = CoupledDistillConfig(4, num_distill_calls=2, num_rounds=2, full_share=0.5)
    assert [config.calls_of(r) for r in (1, 2)] == [4, 2]
    assert config.calls_of(np.int8(2)) == 2
    # 2^8 is 0 in 8 bits.
    assert CoupledDistillConfig(2048, num_distill_calls=2).calls_of(np.int8(9)) == 8
    noise, tokens = _noise(STUDENT, keys(), 8), np.zeros((len(keys()), 8), np.int32)
    first, last = (
        jax.device_get(_states(STUDENT, Trajectories(noise, tokens), KEY, config, round))
        for round in (1, 2)
    )
    masked, left = ((x == MASK).sum(axis=1) for x in (first.x_t, first.x_s))
    assert set(masked.tolist()) == {4, 8}
    np.testing.assert_array_equal(first.reached.sum(axis=1), 4)
    np.testing.assert_array_equal(left, masked - 4)
    np.testing.assert_array_equal(last.reached, 1)


def test_a_state_before_a_call_that_reveals_nothing_has_the_noise_of_what_is_masked():
    """Eight calls for three tokens. Oracle: log-linear, the share of the next position in the order.

    The student was told noise 0 before calls that reveal nothing.
    """
    config = CoupledDistillConfig(8, num_distill_calls=2, full_share=0.0)
    noise, tokens = _noise(STUDENT, keys(), LENGTH), np.zeros((len(keys()), LENGTH), np.int32)
    states = jax.device_get(_states(STUDENT, Trajectories(noise, tokens), KEY, config, 1))
    for x, sigma in ((states.x_t, states.sigma), (states.x_s, states.sigma_s)):
        following = np.where(x == MASK, noise.order, 0.0).max(axis=1)
        np.testing.assert_allclose(sigma, -np.log1p(-0.999 * following), rtol=1e-4)


@functools.cache
def made():
    """Trajectories of the teacher's four calls."""
    noise = _noise(STUDENT, keys(), LENGTH)
    return Trajectories(noise, _end(TEACHER, TABLE, noise, CALLS))


def test_the_loss_is_the_cross_entropy_on_the_trajectorys_end():
    total, count = _terms(STUDENT, PARAMS(), made(), KEY, ONE_SHOT)
    states = jax.device_get(_states(STUDENT, made(), KEY, ONE_SHOT, 1))
    log_probs = np.asarray(_says(states.x_t, made().noise))
    chosen = np.take_along_axis(log_probs, np.asarray(made().tokens)[..., None], axis=-1)[..., 0]
    assert float(count) == states.reached.sum()
    assert float(total) == pytest.approx(-(chosen * states.reached).sum(), rel=1e-5)


@jax.jit
def _says(x_t, noise):
    """The student's log-probabilities of tokens."""
    logits = NETWORK.logits(PARAMS(), NETWORK.hidden(PARAMS(), x_t, None, noise))[..., :VOCAB]
    return jax.nn.log_softmax(logits)


def test_soft_targets_are_what_the_teacher_says_once_the_next_calls_are_made():
    """Oracle: trajectories followed position by position, with the teacher looked up at their states."""
    config = CoupledDistillConfig(4, num_distill_calls=2, num_rounds=2, soft_weight=0.5)
    assert config.trajectory(1) == CALLS
    # Its predictions depend on the time that it is passed.
    timed = Teacher(MaskedDiffusion(TableDenoiser(time_scale=0.3), make_schedule()), TABLE)
    total, count = jax.jit(
        lambda trajectories: coupled_terms(STUDENT, PARAMS(), trajectories, KEY, config, 1, timed)
    )(made())
    noise, tokens = jax.device_get(made())
    states = jax.device_get(_states(STUDENT, made(), KEY, config, 1))
    says, x_t, table = np.asarray(_says(states.x_t, noise)), states.x_t, np.float64(TABLE["table"])
    order = np.argsort(-noise.order, axis=1)
    # Three tokens by four calls: the first two calls reveal two of them, the last two the third.
    by_hand, weights = 0.0, 0.0
    for row, (first, second, third) in enumerate(order):
        begun = bool(x_t[row, first] != MASK)
        for place in (third,) if begun else (first, second):
            by_hand -= says[row, place, tokens[row, place]]
            weights += 1.0
        if begun:
            continue
        shown = np.full(LENGTH, MASK)
        for place in (first, second):
            logits = table[shown @ [16, 4, 1], place]
            shown[place] = int(np.argmax(logits + noise.token[row, place]))
        sigma = -np.log1p(-0.999 * noise.order[row, third])  # its time in the order
        target = log_softmax(table[shown @ [16, 4, 1], third] * (1 + 0.3 * sigma))
        by_hand += 0.5 * (np.exp(target) * (target - says[row, third])).sum()
        weights += 0.5
    assert float(count) == pytest.approx(weights)
    assert float(total) == pytest.approx(by_hand, rel=1e-5)


def test_the_objective_is_the_loss_of_its_trajectories_and_holds_nothing_on_a_device():
    """Compiling a step fetches its program's constants, and on a GPU the training loop forbids that."""
    loss = coupled_loss(STUDENT, TEACHER, ONE_SHOT, 1, NOISE_KEY, LENGTH)
    inputs = (PARAMS(), {"teacher_params": TABLE}, {"index": INDEX}, KEY)
    traced = jax.jit(loss).trace(*inputs)
    assert not [x for x in traced.jaxpr.consts if isinstance(x, jax.Array)]
    total, count = _terms(STUDENT, PARAMS(), made(), KEY, ONE_SHOT)
    found = traced.lower().compile()(*inputs)
    assert float(found.total) == pytest.approx(float(total), rel=1e-5)
    assert float(found.weight) == float(count)


def test_in_hindsight_the_objective_infers_the_noise_of_its_texts_or_is_given_it(monkeypatch):
    """Oracle: the trajectories that it hands to the loss, which the test above computes."""
    config = CoupledDistillConfig(4, hindsight=True)
    loss = coupled_loss(STUDENT, TEACHER, config, 1, NOISE_KEY, LENGTH)
    texts = np.random.default_rng(9).integers(0, VOCAB, (len(keys()), LENGTH)).astype(np.int32)
    noise = _hindsight(TEACHER, TABLE, made().noise, texts, CALLS)

    def kept(diffusion, params, trajectories, key, used, round, soft):
        assert (diffusion, used, round, soft) == (STUDENT, config, 1, None)
        return trajectories, (params, key)

    monkeypatch.setattr(objectives, "coupled_terms", kept)
    given = {"index": INDEX, "tokens": texts}
    for context, batch in (({"teacher_params": TABLE}, given), ({}, given | {"noise": noise})):
        found = jax.jit(loss)(PARAMS()["head"], context, batch, KEY)
        np.testing.assert_array_equal(found.total.tokens, texts)
        jax.tree.map(np.testing.assert_allclose, found.total.noise, noise)
        jax.tree.map(np.testing.assert_array_equal, found.weight[0], PARAMS()["head"])
        assert found.weight[1] == KEY


@pytest.mark.parametrize("mode", ["refine", "remdm-confidence", "blocks:length=1,cache=none"])
def test_a_decoder_with_calls_of_its_own_is_refused_for_a_network_that_sees_noise(mode):
    """The network would be shown no noise, and was never trained without."""
    x_init = prior_sample(2, LENGTH, MASK)
    with pytest.raises(ConfigError, match=f"mode={mode} makes its own network calls"):
        sample(STUDENT, {}, jax.random.key(0), x_init, SamplerConfig(3, mode=mode))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_distill_calls": 1}, "num_distill_calls=1"),
        (
            {"num_calls": 4, "num_distill_calls": 2, "independent": True},
            "independent=True .* num_distill_calls=0, not 2",
        ),
        ({"num_rounds": 2}, "num_rounds=2"),
        ({"num_calls": 6, "num_distill_calls": 2, "num_rounds": 2}, "num_calls=6"),
        ({"soft_weight": 1.0}, "soft_weight=1.0 needs num_distill_calls"),
        ({"soft_weight": -1.0, "num_distill_calls": 2}, "soft_weight"),
        (
            {"hindsight": True, "num_distill_calls": 2},
            "hindsight=True .* num_distill_calls=0, not 2",
        ),
        ({"mode": "left"}, "mode='left'"),
        # The first reveals nothing by its plan, the second writes with calls of its own.
        ({"mode": "confidence"}, "mode=confidence: the noise must decide in advance"),
        ({"mode": "refine", "num_distill_calls": 2}, "mode=refine: the noise must decide"),
        ({"mode": "grid:stop=eos:1"}, "mode=grid:stop=eos:1: the noise must .* without stop="),
        (
            {"mode": "learnt:counts=1/7"},
            "mode=learnt:counts=1/7: .* no counts or temperatures be learnt",
        ),
        ({"full_share": 1.5}, "full_share"),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(ConfigError, match=named):
        CoupledDistillConfig(**fields)


@pytest.mark.parametrize(("mode", "used"), [("grid", "cosine"), ("first-hitting", "uniform")])
def test_a_grid_that_the_mode_has_no_use_for_is_passed_over(mode, used):
    """Configs that earlier versions stored may name one, and must load."""
    assert CoupledDistillConfig(mode=mode, time_grid="cosine").trajectory(1).time_grid == used
