"""Drafts that a second model checks. Oracle: distances in NumPy.

The law of whole generations is in tests/laboratory/test_decoder_steps.py.
"""

import jax
import numpy as np

from sdtt_jax.diffusion.decoders.base import Helper
from sdtt_jax.diffusion.decoders.speculative import token_distances
from tests.worlds import LENGTH, VOCAB, noisy_params, tiny_network


def test_distances_are_those_of_the_columns_of_the_last_linear_map():
    network = tiny_network()
    params = noisy_params(network, 0)
    columns = np.asarray(params["head"]["linear"]["kernel"], np.float64)[:, :VOCAB].T
    drafted = np.array([[0, 2, 1]], np.int32)
    expected = np.square(columns[drafted][..., None, :] - columns).sum(axis=-1)
    helper = Helper(params=params, network=network)
    find = jax.jit(lambda x: token_distances(helper, x, x, VOCAB))
    assert drafted.shape == (1, LENGTH)
    np.testing.assert_allclose(find(drafted), expected, rtol=1e-4, atol=1e-5)
