"""GPT-2 from the hub's own files against the values of the hub's own library.

Oracle: `forward.npz` of a `gpt2_*` folder (golden/README.md), float32, within 1e-5 relative.
"""

import jax
import numpy as np
import pytest

from sdtt_jax.causal.sampler import generate
from sdtt_jax.interchange.layouts import open_published, published_params
from sdtt_jax.networks.gpt2 import GPT2Network

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
PROMPT_LENGTH = 4


@pytest.fixture(scope="module")
def loaded(gpt2_golden):
    """Model, parameters and the arrays of forward.npz."""
    published = open_published(gpt2_golden)
    config, params = published.config, published_params(published)
    with np.load(gpt2_golden / "forward.npz") as file:
        return GPT2Network(config), params, dict(file)


def test_final_hidden_states_logits_and_nll(loaded):
    model, params, expected = loaded
    tokens, vocab = expected["tokens"], model.config.vocab_size

    @jax.jit
    def forward(params, tokens):
        hidden = model.hidden(params, tokens)
        logits = model.logits(params, hidden)
        return hidden, logits, jax.nn.log_softmax(logits)

    hidden, logits, log_probs = (np.asarray(x) for x in forward(params, tokens))
    np.testing.assert_allclose(hidden, expected["final_hidden"], **TOLERANCE)
    np.testing.assert_allclose(logits[..., :vocab], expected["logits"], **TOLERANCE)
    next_token = np.take_along_axis(log_probs[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
    np.testing.assert_allclose(-next_token, expected["nll"], **TOLERANCE)


def test_greedy_continuation_with_the_cache(loaded):
    model, params, expected = loaded
    continuation = expected["greedy_continuation"]
    generated = generate(
        model,
        params,
        jax.random.key(0),
        prompt=continuation[:, :PROMPT_LENGTH],
        num_tokens=continuation.shape[1] - PROMPT_LENGTH,
        temperature=0.0,
    )
    np.testing.assert_array_equal(generated, continuation)
