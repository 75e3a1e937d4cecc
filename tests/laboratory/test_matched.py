"""Laws at the chain's entropy. Oracle: every way to reveal two tokens, written out, at 4,000 temperatures."""

import itertools

import numpy as np
import pytest
from scipy import special

from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.quality import unigram_entropy
from sdtt_jax.laboratory.matched import ENTROPIES, in_text_entropy, matched_measures
from sdtt_jax.laboratory.optimum import round_optimum
from sdtt_jax.laboratory.record import Truth
from sdtt_jax.laboratory.world import World

WORLD = World((0.6, 0.4), ((0.9, 0.1), (0.3, 0.7)), 2, (0.3,), name="pairs")
TRUTH = Truth.of(WORLD)
ROUND = round_optimum(TRUTH.teacher, 0.3, "kl-bwd")
CHAIN = np.array([0.54, 0.06, 0.12, 0.28])  # of 00, 01, 10, 11
MASKED = (
    8  # number of the state without tokens; that with first token a is 3 a + 2, with second b 6 + b
)
TEMPERATURES = np.geomspace(0.05, 5, 4000)


def written_out(table: np.ndarray, calls: int) -> np.ndarray:
    """`[temperatures, 4]`: the probability of every text, over all calls that can write its tokens."""
    powers = table[None] ** (1 / TEMPERATURES)[:, None, None, None]
    p = powers / powers.sum(axis=-1, keepdims=True)
    law = []
    for a, b in itertools.product(range(2), repeat=2):
        first, second = p[:, MASKED, 0, a], p[:, MASKED, 1, b]
        together = first * second
        left_first, right_first = first * p[:, 3 * a + 2, 1, b], second * p[:, 6 + b, 0, a]
        same = 1 / calls
        law.append(same * together + (1 - same) * (left_first + right_first) / 2)
    return np.stack(law, axis=1)


def entropy_of(law: np.ndarray, entropy: str) -> np.ndarray:
    if entropy == "joint":
        return special.entr(law).sum(axis=-1) / 2
    return law[..., 1:3].sum(axis=-1) * np.log(2)  # 0 if both tokens are alike, else log 2


@pytest.mark.parametrize("entropy", ENTROPIES)
@pytest.mark.parametrize("tables", [[TRUTH.teacher], [ROUND], [TRUTH.teacher, ROUND]])
def test_measures_are_those_at_the_temperature_that_makes_entropies_equal(tables, entropy) -> None:
    found = matched_measures(TRUTH, tables, (2, 3), entropy)
    for n in (2, 3):
        laws = np.mean([written_out(table, n) for table in tables], axis=0)
        best = np.abs(entropy_of(laws, entropy) - entropy_of(CHAIN, entropy)).argmin()
        law, measures = laws[best], found[str(n)]
        assert measures.pop("reached")
        assert measures == pytest.approx(
            {
                "temperature": TEMPERATURES[best],
                "kl": (law * np.log(law / CHAIN)).sum(),
                "kl_reverse": (CHAIN * np.log(CHAIN / law)).sum(),
                "tv": np.abs(law - CHAIN).sum() / 2,
                "entropy": special.entr(law).sum() / 2,
            },
            abs=2e-3,  # neighbouring temperatures differ by a factor of 1 + 1.2e-3
        )


def test_the_entropy_within_a_text_is_that_which_is_counted_on_real_texts() -> None:
    """Oracle: the evaluation's. With two tokens, counts of all other tokens would have the same."""
    third = (1 / 3,) * 3
    truth = Truth.of(World(third, (third,) * 3, 3, (0.3,)))
    texts = np.array(list(itertools.product(range(3), repeat=3)))
    np.testing.assert_allclose(in_text_entropy(truth), unigram_entropy(texts), atol=1e-12)


def test_where_no_temperature_reaches_the_entropy_the_nearest_is_taken() -> None:
    """Oracle: by symmetry one call writes all four texts equally often, at any temperature."""
    world = World((0.5, 0.5), ((0.9, 0.1), (0.1, 0.9)), 2)
    truth = Truth.of(world)
    found = matched_measures(truth, [truth.teacher], (1,))["1"]
    assert not found["reached"]
    assert found["temperature"] == 1
    assert found["entropy"] == pytest.approx(np.log(2))


def test_an_unknown_entropy_is_named() -> None:
    with pytest.raises(ConfigError, match="entropy='bigram' is unknown"):
        matched_measures(TRUTH, [ROUND], (1,), "bigram")
