"""Rotary frequencies for long texts. Oracles: wavelengths worked out by hand, and tests/plain_llama.py."""

import math

import numpy as np
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.networks.attention.rotary import (
    NO_SCALING,
    RotaryScaling,
    rotary_tables,
    scaled_frequencies,
)
from tests import plain_llama

# Llama 3.1's own numbers; 3.2 has a factor of 32.
PUBLISHED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA3 = RotaryScaling("llama3", factor=8.0)


def wavelength(positions, scaling):
    """Positions for one turn, after scaling."""
    found = scaled_frequencies(np.float32(2 * math.pi / np.asarray(positions)), scaling)
    return 2 * math.pi / np.asarray(found, np.float64)


def test_short_waves_stay_and_long_ones_are_longer_by_the_factor():
    short = [2 * math.pi, 100, 1024, 2048]  # at least four turns in 8192
    np.testing.assert_allclose(wavelength(short, LLAMA3), short, rtol=1e-6)
    long = np.array([8192, 10_000, 1e6])  # one turn at most
    np.testing.assert_allclose(wavelength(long, LLAMA3), 8 * long, rtol=1e-6)


def test_between_them_a_frequency_is_a_mean_of_both():
    """Two turns are a third of the way from one to four: 1/3 + 2/3 / 8 = 5/12; three: 2/3 + 1/24 = 17/24."""
    waves = np.array([8192 / 2, 8192 / 3])
    np.testing.assert_allclose(wavelength(waves, LLAMA3), waves * [12 / 5, 24 / 17], rtol=1e-6)


def test_linear_scaling_makes_every_wave_longer_by_the_factor():
    """`factor` positions turn as far as one did before (position interpolation)."""
    scaled = rotary_tables(np.arange(12), 8, scaling=RotaryScaling("linear", factor=4.0))
    for table, plain in zip(scaled, rotary_tables(np.arange(3), 8), strict=True):
        np.testing.assert_allclose(table[::4], plain, atol=1e-6)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llamas_frequencies_are_those_of_the_plain_twin(factor):
    """For Llama 3.1's heads: 128 features, base 500,000."""
    frequency = 500_000.0 ** (-np.arange(64) / 64)
    expected = [plain_llama.slowed(f, PUBLISHED | {"factor": factor}) for f in frequency]
    found = scaled_frequencies(np.float32(frequency), RotaryScaling("llama3", factor=factor))
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    share = frequency / np.asarray(found)
    counts = [np.isclose(share, s, rtol=1e-5).sum() for s in (1, factor)]
    # 2 pi 500000^(i / 64) is at most 2048 for i up to 28, and at least 8192 from 35 on.
    assert counts == [29, 29]


def test_without_scaling_nothing_changes():
    frequency = np.float32([1.0, 1e-4])
    np.testing.assert_array_equal(scaled_frequencies(frequency, NO_SCALING), frequency)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "yarn"}, "kind='yarn'"),
        ({"factor": 0.0}, "factor must be positive"),
        ({"low_freq_factor": 4.0}, "high_freq_factor=4.0 must exceed low_freq_factor=4.0"),
    ],
)
def test_scalings_that_are_none_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        RotaryScaling(**fields)


@pytest.mark.parametrize("base", [10_000, 3_580_165_449])
def test_a_base_may_be_a_whole_number_of_any_size(base):
    """Configs say `"rope_theta": 3580165449`, which no int32 holds; by the formula, in NumPy."""
    angle = 7 * float(base) ** (-np.arange(0, 8, 2) / 8)
    cos, sin = rotary_tables(np.array([7]), 8, base)
    np.testing.assert_allclose(cos[0], np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(sin[0], np.sin(angle), atol=1e-6)
