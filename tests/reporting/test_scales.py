"""Scales, ticks and labels. Oracles: hand calculation, and properties over random input."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtt_jax.reporting.scales import Scale, linear_ticks, log_ticks, spread


def test_a_log_scale_puts_the_geometric_mean_in_the_middle():
    scale = Scale(10.0, 1000.0, 0.0, 200.0, log=True)
    assert scale(100.0) == pytest.approx(100.0)
    assert (scale(10.0), scale(1000.0)) == pytest.approx((0.0, 200.0))


@settings(deadline=None)  # a loaded machine is no failure
@given(st.floats(1e-6, 1e6), st.floats(1.001, 1e5), st.integers(3, 7))
def test_ticks_lie_inside_the_range_and_are_few(low, ratio, count):
    for ticks in (log_ticks(low, low * ratio, count), linear_ticks(low, low * ratio, count)):
        assert all(low * (1 - 1e-6) <= t <= low * ratio * (1 + 1e-6) for t in ticks)
        assert len(ticks) <= 2 * count + 2


def test_linear_ticks_of_a_plain_range():
    assert linear_ticks(0.0, 1.0, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


@settings(deadline=None)
@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
def test_labels_keep_apart_in_order_and_inside(positions):
    """12 labels of gap 16 need 176 of 300 pixels, so room is always enough."""
    places = spread(positions, 16.0, 0.0, 300.0)
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    for upper, lower in itertools.pairwise(order):
        assert places[lower] - places[upper] >= 16.0 - 1e-6
    assert all(-1e-6 <= place <= 300.0 + 1e-6 for place in places)


def test_labels_with_room_stay_where_they_are():
    assert spread([10.0, 100.0, 50.0], 16.0, 0.0, 300.0) == [10.0, 100.0, 50.0]
