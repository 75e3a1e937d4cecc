"""The likelihood of a suffix after a prefix, and its greedy prediction, against the reference's.

Oracle: `suffix_nll.npz` of a `reference_*` folder (golden/README.md), float32, within 1e-5 relative.
"""

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion.estimators import BoundConfig, Masking, masking_bound
from sdtt_jax.diffusion.nelbo import nelbo_weight
from sdtt_jax.evaluation.cloze import scores
from sdtt_jax.evaluation.continuations import Continuation, RowLayout
from tests.parity.reference import SCHEDULE, arrays, network
from tests.worlds import as_model


@pytest.fixture(scope="module")
def stored(reference_golden):
    return arrays(reference_golden, "suffix_nll")


@pytest.fixture(scope="module")
def student(reference_golden):
    return as_model(*network(reference_golden, "student_hub"), SCHEDULE)


def test_suffix_likelihood(stored, student, close):
    """The maskings that the reference drew, by the estimator's own sum."""
    text = np.concatenate([stored["prefix"], stored["suffix"]])

    @jax.jit
    def bound(params, x0, x_t, t):
        masking = Masking(x_t, SCHEDULE.sigma(t), nelbo_weight(SCHEDULE, t))
        return masking_bound(student.diffusion, params, x0, masking)

    x0 = np.broadcast_to(text, stored["xt"].shape)
    nll = np.asarray(bound(student.params, x0, stored["xt"], stored["t"]))
    close("suffix: nll per masking", nll, stored["nll_per_masking"])
    close("suffix: nll", nll.mean(), stored["nll"])


def test_greedy_suffix(stored, student):
    """The reference's greedy text is a hit, and its true text only if it is the same. The suffix's last token
    is never masked."""
    layout = RowLayout(eos_id=int(stored["suffix"][-1]))
    greedy, true = stored["greedy"][:-1], stored["suffix"][:-1]
    items = [Continuation(stored["prefix"], suffix) for suffix in (greedy, true)]
    config = BoundConfig("counts", 1)
    hits = scores(student, items, jax.random.key(0), config, layout, batch_size=2).greedy
    assert hits.tolist() == [True, np.array_equal(greedy, true)]
