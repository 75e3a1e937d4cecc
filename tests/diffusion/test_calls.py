"""How masked positions fall to calls. The law of whole generations is in test_sampler.py."""

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.diffusion.calls import even_calls


def test_even_calls_are_even_and_know_their_times():
    """n = 20,000, seed 15: the k-th of m uniform numbers from above has mean (m + 1 - k) / (m + 1)."""
    masked = np.tile(np.array([True, False, True, True, True, True]), (20_000, 1))
    uniform = jax.random.uniform(jax.random.key(15), masked.shape)
    call, first = jax.device_get(jax.jit(even_calls, static_argnums=2)(uniform, masked, 2))
    assert (call[:, 1] == 2).all(), "what is not masked belongs to no call"
    np.testing.assert_array_equal((call == 0).sum(axis=1), 3)
    np.testing.assert_array_equal((call == 1).sum(axis=1), 2)
    # The first of five, and the fourth, which is the first of the second call; standard error 1.2e-3.
    np.testing.assert_allclose(first.mean(axis=0), [5 / 6, 2 / 6], atol=5e-3)
    share = (call[:, [0, 2, 3, 4, 5]] == 0).mean(axis=0)
    np.testing.assert_allclose(share, 3 / 5, atol=0.014)  # four standard errors


def test_even_calls_of_long_texts_in_many_steps_do_not_overflow():
    """Oracle: whole numbers without an end. The product of place and calls has 32 bits at this size."""
    length, calls = 4096, 600_000
    share = 1 - jnp.arange(length)[None] / length
    call, _ = even_calls(share, jnp.ones((1, length), bool), calls)
    assert call[0].tolist() == [place * calls // length for place in range(length)]
