"""How masked positions fall to calls. The law of whole generations is in test_sampler.py.

Here is only that of schedules that mask much at the last time.
"""

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion.calls import dealt_calls, even_calls
from sdtt_jax.diffusion.decoders.energy import Energy
from sdtt_jax.diffusion.decoders.staged import Staged
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import ScheduleConfig, make_schedule
from sdtt_jax.errors import ConfigError
from tests.diffusion.test_sampler import TABLE, TABLE_PARAMS, text_counts
from tests.statistics import assert_fits
from tests.worlds import LENGTH, MASK, predictions

_even = jax.jit(even_calls, static_argnums=2)
_dealt = jax.jit(dealt_calls, static_argnums=2)


def _falling(length):
    """Numbers that give the positions to the calls in order."""
    return (1 - np.arange(length, dtype=np.float32)[None] / length).astype(np.float32)


def test_even_calls_are_even_and_know_their_times():
    """n = 20,000, seed 15: the k-th of m uniform numbers from above has mean (m + 1 - k) / (m + 1)."""
    masked = np.tile(np.array([True, False, True, True, True, True]), (20_000, 1))
    uniform = jax.random.uniform(jax.random.key(15), masked.shape)
    call, first = jax.device_get(_even(uniform, masked, 2))
    assert (call[:, 1] == 2).all(), "what is not masked belongs to no call"
    np.testing.assert_array_equal((call == 0).sum(axis=1), 3)
    np.testing.assert_array_equal((call == 1).sum(axis=1), 2)
    # The first of five, and the fourth, which is the first of the second call; standard error 1.2e-3.
    np.testing.assert_allclose(first.mean(axis=0), [5 / 6, 2 / 6], atol=5e-3)
    share = (call[:, [0, 2, 3, 4, 5]] == 0).mean(axis=0)
    np.testing.assert_allclose(share, 3 / 5, atol=0.014)  # four standard errors


@pytest.mark.parametrize(
    ("until", "calls"),
    [("0.5", "M MH MMH MMHH MMMHH"), ("0.25/0.75", "H MH MHM MHHM MHHHM MMHHHM")],
)
def test_half_of_the_calls_are_half_also_of_an_odd_number(until, calls):
    """M is the model's call, H its helper's: from 1 call on. A half of a call is rounded up."""
    staged = Staged(until)
    for turns in calls.split():
        who = [int(staged.whose(call, len(turns))) for call in range(len(turns))]
        assert "".join("MH"[each] for each in who) == turns


def test_a_window_of_candidates_is_at_least_one_step():
    found = [Energy(window=window).comparisons(4) for window in (0.0, 0.1, 0.125, 0.375, 0.5, 1.0)]
    assert found == [0, 1, 1, 2, 2, 4]
    assert Energy(window=0.5).comparisons(1) == 1
    assert Energy(window=0.29).comparisons(50) == 15, "14.5, though 0.29 * 50 is a little less"


@pytest.mark.parametrize(("length", "calls"), [(4096, 600_000), (46_340, 46_339)])
def test_calls_of_long_texts_in_many_steps_do_not_overflow(length, calls):
    """Oracle: whole numbers without an end. The product of place and calls has 32 bits at these sizes."""
    share, masked = _falling(length), np.ones((1, length), bool)
    call = np.asarray(_even(share, masked, calls)[0][0])
    np.testing.assert_array_equal(call, np.arange(length, dtype=np.int64) * calls // length)
    half = length // 2
    dealt = np.asarray(_dealt(share, masked, (half, length - half))[0][0])
    np.testing.assert_array_equal(dealt, np.arange(length) >= half)


@pytest.mark.parametrize(("length", "calls"), [(46_341, 2), (200_000, 10_000)])
def test_a_longer_text_is_dealt_out_to_few_calls(length, calls):
    """Oracle: whole numbers without an end."""
    share, masked = _falling(length), np.ones((1, length), bool)
    call = np.asarray(_even(share, masked, calls)[0][0])
    np.testing.assert_array_equal(call, np.arange(length, dtype=np.int64) * calls // length)


@pytest.mark.parametrize(("length", "calls"), [(46_341, 46_341), (300_000, 10_000)])
def test_a_text_whose_places_times_calls_leave_int32_is_refused(length, calls):
    share, masked = np.zeros((1, length), np.float32), np.ones((1, length), bool)
    with pytest.raises(ConfigError, match=f"{length} tokens cannot be dealt out to {calls} calls"):
        even_calls(share, masked, calls)
    with pytest.raises(ConfigError, match=f"counts that add up to {length}: .* int32"):
        dealt_calls(share, masked, (1, length - 1))


@pytest.mark.parametrize("noise", [{"sigma_min": 1.0}, {"sigma_max": 1e5}], ids=str)
def test_what_a_schedule_masks_at_the_last_time_is_drawn(noise):
    """63 % of the tokens, all in one step. n = 20,000, standard error at most 3.5e-3, seed 17.

    Oracle: the product of the predictions. The most probable tokens were taken.
    """
    schedule = make_schedule(ScheduleConfig("linear", **noise))
    model, x_init = MaskedDiffusion(TABLE, schedule), prior_sample(20_000, LENGTH, MASK)
    generate = jax.jit(lambda key: sample(model, TABLE_PARAMS, key, x_init, SamplerConfig(1))[0])
    state = generate(jax.random.key(17))
    first, second, third = predictions(TABLE, TABLE_PARAMS)[-1]
    exact = first[:, None, None] * second[:, None] * third
    assert_fits(text_counts(state.x), exact.ravel())
    assert int(state.nfe) == 1
