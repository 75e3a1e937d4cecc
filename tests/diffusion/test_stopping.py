"""Texts that stop early. Oracle: a loop in Python over the states of the same generation without `stop`."""

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion.decoders.stopping import Stop, begin_watch, updated_watch
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.model.batches import unmasked
from sdtt_jax.model.prompts import cut_at_eos
from tests.worlds import LENGTH, MASK, TableDenoiser, all_states, predictions, random_table

NETWORK, PARAMS, KEY, BATCH = TableDenoiser(), random_table(2), jax.random.key(0), 64
NUMBER = {tuple(state): n for n, state in enumerate(all_states().tolist())}
_sample = jax.jit(sample, static_argnames=("diffusion", "config", "keep_states"))


def written(mode, *, keep_states=False):
    config = SamplerConfig(8, mode=mode)
    diffusion, x_init = MaskedDiffusion(NETWORK, make_schedule()), prior_sample(BATCH, LENGTH, MASK)
    return jax.device_get(_sample(diffusion, PARAMS, KEY, x_init, config, keep_states=keep_states))


def filled(states, step):
    return MASK not in states[step]


def stable(states, step):
    """A step changed nothing in a text without MASK."""
    return filled(states, step) and (states[step - 1] == states[step]).all()


def end(text):
    """The place of the first token 1 after another token; the length if there is none."""
    places = (n for n, token in enumerate(text) if token == 1 and {*text[:n]} - {1})
    return next(places, len(text))


def eos(states, step):
    """The text has an end, and nothing before it is masked."""
    text = states[step].tolist()
    return end(text) < LENGTH and MASK not in text[: end(text)]


@pytest.mark.parametrize(
    ("mode", "stop", "predicates"),
    [
        ("remdm:eta=0.5", "filled", [filled]),
        ("remdm:eta=0.5", "stable:1", [stable]),
        ("first-hitting", "eos:1", [eos]),
        ("remdm:eta=0.5", "stable:1+eos:1", [stable, eos]),
    ],
)
def test_each_text_stops_where_a_loop_in_python_does(mode, stop, predicates):
    _, states = written(mode, keep_states=True)
    mode = f"{mode}{',' if ':' in mode else ':'}stop={stop}"
    state, stopped = written(mode, keep_states=True)
    lengths = []
    for row in range(BATCH):
        text = states[:, row]
        steps = (s for s in range(1, 9) if any(holds(text, s) for holds in predicates))
        lengths.append(next(steps, 9))
        expected = text[lengths[-1]].copy()
        if lengths[-1] < 9 and eos in predicates and eos(text, lengths[-1]):
            expected[end(expected.tolist()) :] = 1
        np.testing.assert_array_equal(state.x[row], expected)
    assert len(set(lengths)) > 2
    # Without the states the generation is another loop, which is the same for all predicates.
    if eos in predicates:
        looped, none = written(mode)
        assert none is None
        np.testing.assert_array_equal(looped.x, state.x)
        assert int(looped.nfe) == int(state.nfe)
    # No call is made once all texts have stopped.
    longest = max(lengths)
    np.testing.assert_array_equal(
        stopped[longest:-1], stopped[longest : longest + 1].repeat(9 - longest, 0)
    )


def test_what_is_left_is_revealed_at_once_where_it_has_little_entropy():
    """One of three tokens a call, or all masked ones once the sum of their entropies is below the bound."""
    bound = 1.9
    table = predictions(NETWORK, PARAMS)
    entropies = -(table * np.log(table)).sum(axis=-1)
    state, states = written(f"confidence:stop=entropy:{bound}", keep_states=True)
    counts = []
    for row in range(BATCH):
        text, calls = states[:, row], 0
        while MASK in text[calls]:
            masked = text[calls] == MASK
            left = entropies[NUMBER[tuple(text[calls].tolist())]][masked].sum()
            calls += 1
            assert (text[calls] == MASK).sum() == (0 if left < bound else masked.sum() - 1)
        counts.append(calls)
    assert set(counts) == {2, 3}
    assert int(state.nfe) == 3


class Long(TableDenoiser):
    """A denoiser of longer texts, whose predictions are a table by position and the sum of the tokens."""

    def hidden(self, params, tokens, sigma=None):
        del sigma
        return params[tokens.sum(axis=-1) % len(params)]


@pytest.mark.parametrize(
    ("mode", "num_steps", "bos"),
    [("grid", 4, 1), ("grid", 4, 0), ("confidence:threshold=1", 2, 0), ("remdm:eta=0", 4, 1)],
)
def test_a_text_ends_at_the_eos_at_which_the_samples_of_a_model_end(mode, num_steps, bos):
    """Oracle: `model.prompts.cut_at_eos`, by NumPy, of what is written without `stop`.

    BOS is EOS, 1, or another token, 0. Texts of nothing given, with BOS in front, with a given token amid
    gaps, with their end given, and with a given EOS amid gaps. With few steps, the step that fills the rest
    writes EOS too.
    """
    table = np.random.default_rng(3).standard_normal((5, 8, MASK), np.float32)
    given = np.full((5, 8), MASK, np.int32)
    given[1, 0], given[2, 2:4], given[3, 5:], given[4, 3] = bos, 2, 1, 1
    x_init = given.repeat(24, axis=0)
    diffusion = MaskedDiffusion(Long(), make_schedule())
    plain, stopped = (
        np.asarray(_sample(diffusion, table, KEY, x_init, SamplerConfig(num_steps, mode=name))[0].x)
        for name in (mode, f"{mode}{',' if ':' in mode else ':'}stop=eos:1{'/0' * (bos == 0)}")
    )
    expected = cut_at_eos(plain, x_init != MASK, bos, 1)
    np.testing.assert_array_equal(stopped, expected)
    for rows in np.split(expected != plain, 5)[:3]:
        assert rows.any()


def test_no_call_is_made_for_what_is_masked_after_the_end_of_a_text():
    """One call writes the first text's EOS and all of the second; seven more were made for what follows."""
    table = np.zeros((5, 8, MASK), np.float32)
    x_init = np.full((2, 8), MASK, np.int32)
    x_init[:, 0] = 0, 1
    of_first, of_second = (x_init.sum(axis=1) % 5).tolist()
    table[of_first, 1, 1] = table[of_second, :, 2] = 20.0  # sure of these tokens, unsure elsewhere
    diffusion = MaskedDiffusion(Long(), make_schedule())
    config = SamplerConfig(8, mode="confidence:threshold=0.8,stop=eos:1")
    state, _ = _sample(diffusion, table, KEY, x_init, config)
    np.testing.assert_array_equal(state.x, [[0, *[1] * 7], [1, *[2] * 7]])
    assert int(state.nfe) == 1


def test_no_call_is_made_for_what_the_plan_reveals_in_texts_that_have_ended():
    """Oracle: of the states without `stop`, the steps at which a text changes that has not ended before."""
    table = np.random.default_rng(1).standard_normal((5, 8, MASK), np.float32)
    table[..., 1] += 2
    x_init, diffusion = prior_sample(4, 8, MASK), MaskedDiffusion(Long(), make_schedule())

    def run(mode, **more):
        config = SamplerConfig(64, mode=mode)
        return jax.device_get(_sample(diffusion, table, KEY, x_init, config, **more))

    def ended(text):
        place = next((n for n in range(1, 8) if text[n] == 1 and {*text[:n]} - {1}), 8)
        return place < 8 and MASK not in text[:place]

    states = run("grid", keep_states=True)[1]
    changed = (states[1:] != states[:-1]).any(axis=2)
    goes_on = np.array([[not ended(text) for text in texts] for texts in states[:-1].tolist()])
    needed = (changed & goes_on).any(axis=1).sum()
    assert int(run("grid:stop=eos:1")[0].nfe) == needed < changed.any(axis=1).sum()


@pytest.mark.parametrize("stop", ["stable:2", "eos:0"])
def test_texts_in_which_nothing_is_masked_cost_no_calls(stop):
    """They fill up batches. Oracle: the same texts without them, and texts that are masked in their place."""
    config = SamplerConfig(8, mode=f"remdm:eta=0.5,stop={stop}")
    diffusion = MaskedDiffusion(NETWORK, make_schedule())

    def calls(x_init):
        state, _ = jax.device_get(_sample(diffusion, PARAMS, KEY, x_init, config))
        return int(state.nfe), state.x

    masked = prior_sample(BATCH, LENGTH, MASK)
    given = np.broadcast_to(unmasked(masked, MASK), (BATCH - 2, LENGTH))
    alone, texts = calls(masked[:2])
    beside, among = calls(np.concatenate([masked[:2], given]))
    assert alone == beside < calls(masked)[0]
    np.testing.assert_array_equal(among, [*texts, *given])


def test_more_steps_than_int32_counts_never_stop_a_text():
    """JAX counts in int32, and took the number of steps for an overflow. Oracle: the texts without `stop`."""
    (plain, _), (state, _) = (
        written(f"remdm:eta=0.5{stop}") for stop in ("", ",stop=stable:4294967295")
    )
    np.testing.assert_array_equal(state.x, plain.x)


def test_a_text_is_stable_after_as_many_steps_without_a_change_as_were_asked_for():
    """Oracle: the second such step, counted since nothing is masked."""
    masked, filled = np.array([[0, MASK]], np.int32), np.array([[0, 1]], np.int32)
    watch, free, seen = begin_watch(masked, MASK), np.ones((1, 2), bool), []
    for before, after in ((masked, masked), (masked, filled), (filled, filled), (filled, filled)):
        watch = updated_watch(Stop(stable=2), MASK, watch, before, after, free)
        seen.append(bool(watch.stopped[0]))
    assert seen == [False, False, False, True]
