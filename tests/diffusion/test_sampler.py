"""The sampler against exact enumeration, and against a loop in plain Python.

Oracle of the distributions: `tests.worlds.reveals`, a brute-force sum over every subset of positions
and every choice of tokens at every step, on 3 tokens and length 3. Sizes, standard errors and seeds
are given with the tests.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.calls import grid_calls, still_masked
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.reverse import final_denoise, reverse_step, unmask_prob
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample, time_grid
from sdtt_jax.diffusion.schedule import SCHEDULES, ScheduleConfig, make_schedule
from sdtt_jax.errors import ConfigError
from tests.statistics import assert_fits
from tests.worlds import (
    LENGTH,
    MASK,
    VOCAB,
    TableDenoiser,
    all_states,
    draw_each,
    noisy_params,
    predictions,
    random_table,
    reveals,
    tiny_network,
)

SCHEDULE = make_schedule()
KEEP = 1 - 1e-3
TABLE, TABLE_PARAMS = TableDenoiser(), random_table(1)
BLANK = (MASK,) * LENGTH
_sample = jax.jit(sample, static_argnames=("diffusion", "config", "keep_states"))
CALLS = []
COUNTED = TableDenoiser(on_call=lambda: CALLS.append(1))


def run(denoiser, params, key, x_init, config, **options):
    return _sample(MaskedDiffusion(denoiser, SCHEDULE), params, key, x_init, config, **options)


def chances(config):
    """Reveal probabilities of the steps, from the definition of the grid, in float64."""
    n = config.num_steps
    u = 1 - np.arange(n + 1) / n * (1 - 1e-5)
    t = np.cos(np.pi / 2 * (1 - u)) if config.time_grid == "cosine" else u
    t[-1] = 1e-5
    masked = KEEP * t
    return (masked[:-1] - masked[1:]) / masked[:-1]


def exact_paths(table, config):
    """Probability of every path of states, from all-masked to the filled text."""
    row = {tuple(state): number for number, state in enumerate(all_states().tolist())}
    paths = {(BLANK,): 1.0}
    for chance in chances(config):
        longer = {}
        for path, weight in paths.items():
            for state, value in reveals(path[-1], table[row[path[-1]]], chance).items():
                longer[(*path, state)] = longer.get((*path, state), 0.0) + weight * value
        paths = longer
    filled = {}
    for path, weight in paths.items():
        best = table[row[path[-1]]].argmax(axis=-1)
        last = tuple(b if x == MASK else x for x, b in zip(path[-1], best.tolist(), strict=True))
        filled[(*path, last)] = weight
    return filled


def exact_texts(table, config):
    """`[VOCAB^LENGTH]`, texts in lexicographic order."""
    totals = dict.fromkeys(itertools.product(range(VOCAB), repeat=LENGTH), 0.0)
    for path, weight in exact_paths(table, config).items():
        totals[path[-1]] += weight
    return np.array(list(totals.values()))


def text_counts(x):
    texts = np.asarray(x) @ VOCAB ** np.arange(LENGTH - 1, -1, -1)
    return np.bincount(texts, minlength=VOCAB**LENGTH)


def test_texts_have_their_exact_probabilities():
    """Table of predictions; n = 100,000, standard error of a frequency at most 1.6e-3, seed 10. One step:
    `test_the_network_is_told_the_time_of_each_call`; three: `test_paths_have_their_exact_probabilities`."""
    config = SamplerConfig(2, "cosine")
    x_init = prior_sample(100_000, LENGTH, MASK)
    state, _ = run(TABLE, TABLE_PARAMS, jax.random.key(10), x_init, config)
    assert_fits(text_counts(state.x), exact_texts(predictions(TABLE, TABLE_PARAMS), config))


def test_texts_of_a_network_have_their_exact_probabilities():
    """3 steps; the real network, 2 layers; n = 20,000, standard error at most 3.5e-3, seed 11."""
    denoiser = tiny_network()
    params, config = noisy_params(denoiser, 1), SamplerConfig(3, "cosine")
    x_init = prior_sample(20_000, LENGTH, MASK)
    state, _ = run(denoiser, params, jax.random.key(11), x_init, config)
    table = predictions(denoiser, params)
    masked = table[all_states() == MASK]
    assert np.ptp(masked, axis=0).max() > 0.5, "what it predicts should depend on the state"
    assert (-masked * np.log(masked)).sum(axis=-1).min() > 0.4, "and it should never be certain"
    assert_fits(text_counts(state.x), exact_texts(table, config))


def test_paths_have_their_exact_probabilities():
    """Texts, and every state on the way, 3 steps; n = 200,000, standard error at most 1.1e-3, seed 12."""
    config, x_init = SamplerConfig(3, "uniform"), prior_sample(200_000, LENGTH, MASK)
    state, states = run(TABLE, TABLE_PARAMS, jax.random.key(12), x_init, config, keep_states=True)
    assert states.shape == (config.num_steps + 2, 200_000, LENGTH)
    table = predictions(TABLE, TABLE_PARAMS)
    assert_fits(text_counts(state.x), exact_texts(table, config))
    exact = exact_paths(table, config)
    digits = np.swapaxes(np.asarray(states), 0, 1).reshape(len(x_init), -1).astype(np.int64)
    base = (VOCAB + 1) ** np.arange(digits.shape[1] - 1, -1, -1, dtype=np.int64)
    seen, counts = np.unique(digits @ base, return_counts=True)
    number = {int(np.array(path).reshape(-1) @ base): i for i, path in enumerate(exact)}
    assert len(number) == len(exact)
    by_path = np.zeros(len(exact))
    for code, count in zip(seen.tolist(), counts.tolist(), strict=True):
        by_path[number[code]] = count
    assert_fits(by_path, np.array(list(exact.values())))


def test_filters_act_on_every_draw():
    """top_k = 1 leaves the most probable token; n = 20,000 in one step, so exact: no other text."""
    config, x_init = SamplerConfig(1, top_k=1), prior_sample(20_000, LENGTH, MASK)
    state, _ = run(TABLE, TABLE_PARAMS, jax.random.key(0), x_init, config)
    best = predictions(TABLE, TABLE_PARAMS)[-1].argmax(axis=-1)
    assert (np.asarray(state.x) == best).all()


def test_high_temperature_flattens():
    """n = 100,000, standard error 1.6e-3, seed 13: at temperature T the table's logits count 1/T."""
    config, x_init = SamplerConfig(2, temperature=2.5), prior_sample(100_000, LENGTH, MASK)
    state, _ = run(TABLE, TABLE_PARAMS, jax.random.key(13), x_init, config)
    cooler = {"table": TABLE_PARAMS["table"] / 2.5}
    assert_fits(text_counts(state.x), exact_texts(predictions(TABLE, cooler), config))


def exact_first_hitting(table, num_steps):
    """`[VOCAB^LENGTH]`: the mean over all orders; tokens of one call are drawn independently. `table` holds
    the predictions of all calls alike, or of each call in turn."""
    tables = table if np.ndim(table) == 4 else [table] * num_steps
    row = {tuple(state): number for number, state in enumerate(all_states().tolist())}
    totals = dict.fromkeys(itertools.product(range(VOCAB), repeat=LENGTH), 0.0)
    orders = list(itertools.permutations(range(LENGTH)))
    for order, text in itertools.product(orders, totals):
        state, weight = list(BLANK), 1 / len(orders)
        for call in range(num_steps):
            now = [p for rank, p in enumerate(order) if rank * num_steps // LENGTH == call]
            predicted = tables[call][row[tuple(state)]]
            for position in now:
                weight *= predicted[position, text[position]]
            for position in now:
                state[position] = text[position]
        totals[text] += weight
    return np.array(list(totals.values()))


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_first_hitting_texts_have_their_exact_probabilities(num_steps):
    """n = 100,000, standard error of a frequency at most 1.6e-3, seed 14; idle calls are not made."""
    config = SamplerConfig(num_steps, mode="first-hitting")
    x_init = prior_sample(100_000, LENGTH, MASK)
    state, _ = run(TABLE, TABLE_PARAMS, jax.random.key(14), x_init, config)
    exact = exact_first_hitting(predictions(TABLE, TABLE_PARAMS), num_steps)
    assert_fits(text_counts(state.x), exact)
    assert int(state.nfe) == min(num_steps, LENGTH)


def test_first_hitting_keeps_what_is_given():
    config = SamplerConfig(3, mode="first-hitting")
    tokens = np.array([[2, 0, 1]], np.int32)
    x_init = prior_sample(64, LENGTH, MASK, tokens, np.array([[True, False, True]]))
    state, states = run(TABLE, TABLE_PARAMS, jax.random.key(3), x_init, config, keep_states=True)
    assert (np.asarray(state.x)[:, [0, 2]] == tokens[:, [0, 2]]).all()
    assert int(state.nfe) == 1
    assert states.shape == (5, 64, LENGTH)


PLANS = [
    *((7, "uniform", ScheduleConfig(kind)) for kind in SCHEDULES),
    (1, "cosine", ScheduleConfig("log-linear")),
    (2, "cosine", ScheduleConfig("cosine")),
    (64, "cosine", ScheduleConfig("geometric")),
    (64, "uniform", ScheduleConfig("linear", sigma_min=1.0)),
    (64, "uniform", ScheduleConfig("linear", sigma_max=1e5)),
]


@functools.cache
def _laws_of_plans():
    """For each of `PLANS` what is still masked at each time, the steps' chances, and the calls of 2^16 evenly
    spaced numbers of [0, 1): one program for all."""

    def law(shares, num_steps, grid, kind):
        schedule, times = make_schedule(kind), time_grid(SamplerConfig(num_steps, grid))
        still = still_masked(schedule, times)
        # A schedule that masks more than 2e-5 at the last time goes to time 0, which reveals all of it.
        much = schedule.move_chance(times[-1]) > 2e-5 * schedule.move_chance(times[0])
        end = jnp.where(much, 0.0, times[-1])
        later = times.at[-1].set(end)[1:]
        return still, unmask_prob(schedule, times[:-1], later), grid_calls(shares, still)

    shares = (np.arange(2**16, dtype=np.float32) + np.float32(0.5))[None] / np.float32(2**16)
    laws = jax.device_get(jax.jit(lambda x: [law(x, *plan) for plan in PLANS])(shares))
    return dict(zip(PLANS, laws, strict=True))


@pytest.mark.parametrize(("num_steps", "grid", "kind"), PLANS)
def test_the_plan_has_the_law_of_the_chain_of_steps(num_steps, grid, kind):
    """P(revealed by step i) from the chances of all steps up to it, in float64, within 1e-6 + 1e-5 of it.

    Positions are independent under both. The plan's law is counted over 2^16 evenly spaced numbers of [0, 1),
    so every count is exact within one.
    """
    still, revealed, call = _laws_of_plans()[num_steps, grid, kind]
    left = np.concatenate([[1.0], np.cumprod(1 - np.float64(revealed))])
    chain = np.append(left[:-1] * revealed, left[-1])
    ours = -np.diff(np.append(np.float64(still), 0.0))
    np.testing.assert_allclose(ours, chain, rtol=1e-5, atol=1e-6)
    counts = np.bincount(call[0], minlength=num_steps + 1)
    assert len(counts) == num_steps + 1
    np.testing.assert_allclose(counts / 2**16, ours, atol=1.01 / 2**16)


@functools.partial(jax.jit, static_argnames="denoiser")
def _logits_and_draws(denoiser, params, x, key):
    logits = denoiser.logits(params, denoiser.hidden(params, x, None))[..., :MASK]
    return logits, draw_each(key, logits)


def python_sample(denoiser, params, key, x, num_steps, grid):
    """The same generation, as a plain loop over steps with a network call in each."""
    states = [np.asarray(x)]
    move_chance = np.asarray(SCHEDULE.move_chance(grid))
    share = np.asarray(jax.random.uniform(jax.random.fold_in(key, num_steps), x.shape))
    for index in range(num_steps):
        reveal_here = share >= move_chance[index + 1] / move_chance[0]
        _, drawn = _logits_and_draws(denoiser, params, states[-1], jax.random.fold_in(key, index))
        states.append(np.where((states[-1] == MASK) & reveal_here, drawn, states[-1]))
    logits, _ = _logits_and_draws(denoiser, params, states[-1], key)
    last = np.where(states[-1] == MASK, np.argmax(logits, axis=-1), states[-1])
    return np.stack([*states, last])


@pytest.mark.parametrize(("num_steps", "grid"), [(1, "uniform"), (7, "cosine")])
def test_scan_is_bit_equal_to_a_python_loop(num_steps, grid):
    config, key = SamplerConfig(num_steps, grid), jax.random.key(4)
    x_init = prior_sample(64, LENGTH, MASK)
    _, states = run(TABLE, TABLE_PARAMS, key, x_init, config, keep_states=True)
    twin = python_sample(TABLE, TABLE_PARAMS, key, x_init, num_steps, time_grid(config))
    np.testing.assert_array_equal(states, twin)


@pytest.mark.parametrize("fixed", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_given_tokens_never_change(fixed):
    config = SamplerConfig(7, "cosine")
    given = np.zeros(LENGTH, bool)
    given[list(fixed)] = True
    tokens = np.array([[2, 0, 1]], np.int32)
    x_init = np.asarray(prior_sample(64, LENGTH, MASK, tokens, given[None]))
    state, states = run(TABLE, TABLE_PARAMS, jax.random.key(5), x_init, config, keep_states=True)
    assert (np.asarray(states)[:, :, given] == tokens[0, given]).all()
    assert (np.asarray(state.x) != MASK).all()
    assert (x_init[:, ~given] == MASK).all()


@pytest.mark.parametrize("given", [{"tokens": [[2, 0, 1]]}, {"fixed": [[True, False, True]]}])
def test_given_tokens_need_both_arguments_and_the_shape(given):
    with pytest.raises(ConfigError, match="needs both tokens and fixed"):
        prior_sample(1, LENGTH, MASK, **{name: np.array(value) for name, value in given.items()})
    with pytest.raises(ConfigError, match=r"are \(2, 3\), not \(1, 3\)"):
        prior_sample(1, LENGTH, MASK, [[2, 0, 1]] * 2, np.ones((1, 3), bool))


def test_a_number_of_steps_is_no_config():
    x_init, key = prior_sample(1, LENGTH, MASK), jax.random.key(0)
    with pytest.raises(ConfigError, match=r"config must be of type SamplerConfig, not 8"):
        sample(MaskedDiffusion(TABLE, SCHEDULE), TABLE_PARAMS, key, x_init, 8)


def counted(seed, x_init):
    """A generation of 64 steps, its states, and the number of calls that reached the network."""
    CALLS.clear()
    key = jax.random.key(seed)
    found = run(COUNTED, TABLE_PARAMS, key, x_init, SamplerConfig(64), keep_states=True)
    state, states = jax.device_get(found)
    jax.effects_barrier()
    return state, states, len(CALLS)


def test_nfe_counts_the_calls_that_were_made():
    """A step that reveals nothing calls no network: 64 steps, 3 positions, so at most 3 calls."""
    for seed in range(5):
        state, states, calls = counted(seed, prior_sample(1, LENGTH, MASK))
        changed = int((np.diff(states, axis=0) != 0).any(axis=(1, 2)).sum())
        assert int(state.nfe) == calls == changed <= LENGTH


def test_no_call_where_nothing_is_masked():
    state, _, calls = counted(0, np.zeros((1, LENGTH), np.int32))
    assert int(state.nfe) == calls == 0
    np.testing.assert_array_equal(state.x, 0)


def test_final_denoise_is_greedy_and_counts():
    x = np.array([[MASK, 1, MASK], [0, 1, 2]], np.int32)
    diffusion = MaskedDiffusion(TABLE, SCHEDULE)
    denoise = jax.jit(final_denoise, static_argnames="diffusion")
    filled, calls = denoise(diffusion, TABLE_PARAMS, x, np.float32(1e-5))
    best = predictions(TABLE, TABLE_PARAMS)[MASK * 16 + 1 * 4 + MASK].argmax(axis=-1)
    np.testing.assert_array_equal(filled, [[best[0], 1, best[2]], [0, 1, 2]])
    assert int(calls) == 1
    assert filled.dtype == jnp.int32


def test_without_final_denoise_mask_may_remain():
    """One token a call, as none is sure: two steps leave one of three masked, which a third call fills."""
    x_init, key = prior_sample(64, LENGTH, MASK), jax.random.key(0)
    for final, expected in ((False, (64, 2)), (True, (0, 3))):
        config = SamplerConfig(2, final_denoise=final, mode="confidence:threshold=1")
        state, _ = run(TABLE, TABLE_PARAMS, key, x_init, config)
        assert (int((state.x == MASK).sum()), int(state.nfe)) == expected


@jax.jit
def _reversed(key, x_t, prob):
    hidden = TABLE.hidden(TABLE_PARAMS, x_t)
    return reverse_step(MaskedDiffusion(TABLE, SCHEDULE), TABLE_PARAMS, key, x_t, hidden, prob)


@pytest.mark.parametrize("chance", [0.3, 1.0])
def test_a_reverse_step_has_its_exact_probabilities(chance):
    """From one state with two masked positions; n = 50,000, standard error at most 2.3e-3, seed 16."""
    state, key = (MASK, 1, MASK), jax.random.key(16)
    x_t = np.tile(np.array(state, np.int32), (50_000, 1))
    x_s = np.asarray(_reversed(key, x_t, np.float32(chance)))
    row = [tuple(s) for s in all_states().tolist()].index(state)
    exact = reveals(state, predictions(TABLE, TABLE_PARAMS)[row], chance)
    exact = {s: value for s, value in exact.items() if value > 0}
    seen, counts = np.unique(x_s, axis=0, return_counts=True)
    found = dict(zip(map(tuple, seen.tolist()), counts.tolist(), strict=True))
    assert set(found) <= set(exact)
    assert_fits(np.array([found.get(s, 0) for s in exact]), np.array(list(exact.values())))


def test_the_network_is_told_the_time_of_each_call():
    """Two steps from t = 1: a network that sees sigma draws from sharper predictions early."""
    told, config = TableDenoiser(time_scale=0.3), SamplerConfig(1)
    x_init = prior_sample(100_000, LENGTH, MASK)
    state, _ = run(told, TABLE_PARAMS, jax.random.key(14), x_init, config)
    sigma = float(SCHEDULE.sigma(jnp.float32(1.0)))
    table = predictions(told, TABLE_PARAMS, sigma)
    # n = 100,000, standard error at most 1.6e-3, seed 14
    assert_fits(text_counts(state.x), exact_texts(table, config))


def test_time_grids_fall_from_one_to_eps():
    for kind in ("uniform", "cosine"):
        grid = np.asarray(time_grid(SamplerConfig(16, kind)))
        assert grid[0] == 1.0
        assert grid[-1] == np.float32(1e-5)
        assert np.all(np.diff(grid) < 0)
    assert grid[1] > 1 - 1 / 16, "the cosine grid takes small steps while little is known"


def test_reveal_chance_at_the_edges():
    t = jnp.float32(0.25)
    assert float(unmask_prob(SCHEDULE, t, t)) == 0.0
    assert float(unmask_prob(SCHEDULE, t, jnp.float32(-0.3))) == 1.0
    assert float(unmask_prob(SCHEDULE, t, jnp.float32(0.15))) == pytest.approx(0.4, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 1, "time_grid": "linear"}, "time_grid"),
        ({"num_steps": 1, "top_p": 0.0}, "top_p"),
        ({"num_steps": 1, "top_k": -1}, "top_k"),
        ({"num_steps": 1, "temperature": -1.0}, "temperature"),
        ({"num_steps": 4, "cooling": 1.0}, "cooling"),
        ({"num_steps": 4, "cooling": 0.5, "temperature": 0.0}, "cooling has no effect"),
        ({"num_steps": 4, "cooling": 0.5, "mode": "refine"}, "draws in its own way"),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(ConfigError, match=named):
        SamplerConfig(**fields)
