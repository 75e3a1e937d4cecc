"""Networks with the reference's weights against the values that the reference printed.

Oracle: `forward.npz` and `ar_forward.npz` of a `reference_*` folder (golden/README.md), float32,
within 1e-5 relative.
"""

import functools
import json

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion.forward import subs_log_probs
from sdtt_jax.interchange.layouts import published_params, recognised
from sdtt_jax.interchange.renaming import Stored
from sdtt_jax.interchange.safetensors import Tensors
from sdtt_jax.interchange.tables.reference import CAUSAL, DENOISER
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.denoiser import Denoiser

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def _settings(folder):
    return json.loads((folder / "config.json").read_text())


@functools.partial(jax.jit, static_argnames="model")
def _logits(model, params, tokens, sigma):
    return model.logits(params, model.hidden(params, tokens, sigma))


def _denoiser_logits(folder, name, tokens, sigma, *, time_conditioned=False):
    stored = _settings(folder)["model"] | {"time_conditioning": time_conditioned}
    tensors = Tensors(folder / f"{name}.safetensors")
    published = recognised(DENOISER, tensors, Stored(stored))
    model = Denoiser(published.config)
    return _logits(model, published_params(published), tokens, sigma), model


@pytest.fixture(scope="module")
def forward(reference_golden):
    """The arrays of forward.npz, in memory."""
    with np.load(reference_golden / "forward.npz") as file:
        return dict(file)


def test_sizes_are_found_from_the_tensors(reference_golden):
    settings = _settings(reference_golden)
    sizes = settings["model"]
    tensors = Tensors(reference_golden / "teacher_hub.safetensors")
    config = recognised(DENOISER, tensors, Stored({"length": sizes["length"]})).config
    assert config.vocab_size == settings["vocab_size"] == settings["mask_index"] == config.mask_id
    found = (config.embed_dim, config.num_layers, config.num_heads, config.cond_dim)
    assert found == tuple(sizes[k] for k in ("hidden_size", "n_blocks", "n_heads", "cond_dim"))


@pytest.mark.parametrize("name", ["teacher_hub", "teacher_nested"])
def test_teacher_logits_at_sigma_zero(reference_golden, forward, name):
    """Published models always get sigma 0, so the sigma passed in must not matter."""
    logits, model = _denoiser_logits(reference_golden, name, forward["xt"], forward["sigma"])
    columns = logits[..., : model.config.vocab_size + 1]
    np.testing.assert_allclose(columns, forward["teacher_logits_sigma0"], **TOLERANCE)


def test_teacher_logits_at_sigma(reference_golden, forward):
    logits, model = _denoiser_logits(
        reference_golden, "teacher_hub", forward["xt"], forward["sigma"], time_conditioned=True
    )
    columns = logits[..., : model.config.vocab_size + 1]
    np.testing.assert_allclose(columns, forward["teacher_logits_sigma"], **TOLERANCE)


@pytest.mark.parametrize(
    ("weights", "time_conditioned", "values"),
    [
        ("teacher_hub", False, "teacher_log_probs"),
        ("student_hub", False, "student_log_probs"),
        ("teacher_hub", True, "teacher_log_probs_time_conditioned"),
    ],
)
def test_subs_log_probabilities(reference_golden, forward, weights, time_conditioned, values):
    """Over all columns, MASK's included, whose finite "minus infinity" is the reference's too."""
    x_t = forward["xt"].astype(np.int32)
    logits, model = _denoiser_logits(
        reference_golden, weights, x_t, forward["sigma"], time_conditioned=time_conditioned
    )
    log_probs = jax.jit(subs_log_probs, static_argnums=2)(logits, x_t, model.mask_id)
    columns = log_probs[..., : model.config.vocab_size + 1]
    np.testing.assert_allclose(columns, forward[values], **TOLERANCE)


def test_autoregressive_log_probabilities_and_nll(reference_golden):
    """Compared over the vocabulary without MASK, whose column the reference leaves meaningless."""
    stored = Stored({"length": _settings(reference_golden)["model"]["length"]})
    published = recognised(CAUSAL, Tensors(reference_golden / "ar_hub.safetensors"), stored)
    config, params = published.config, published_params(published)
    model = CausalNetwork(config)
    with np.load(reference_golden / "ar_forward.npz") as file:
        expected, tokens, nll = file["logits"], file["tokens"], file["nll"]

    @jax.jit
    def log_probs_of(params, tokens):
        return jax.nn.log_softmax(model.logits(params, model.hidden(params, tokens)))

    log_probs = np.asarray(log_probs_of(params, tokens))
    vocab = config.vocab_size
    np.testing.assert_allclose(log_probs[..., :vocab], expected[..., :vocab], **TOLERANCE)
    next_token = np.take_along_axis(log_probs[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
    np.testing.assert_allclose(-next_token, nll, **TOLERANCE)
