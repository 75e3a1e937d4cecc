"""What a model accepts as tokens. Oracle: tokens are `[B, L]` whole numbers below the vocabulary's size, and
MASK only where a noisy text is meant; written by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.causal.nll import causal_loss, causal_nll
from sdtt_jax.causal.sampler import generate
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.estimators import BoundConfig
from sdtt_jax.diffusion.nelbo import denoising_terms, nelbo
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.distillation.alpha import AlphaConfig, alpha_terms
from sdtt_jax.distillation.coupled import CoupledDistillConfig, coupled_terms
from sdtt_jax.distillation.idlm import IdlmConfig, idlm_terms
from sdtt_jax.distillation.loss import distillation_terms, divergence_terms
from sdtt_jax.distillation.mixture import MixtureConfig, mixture_terms
from sdtt_jax.distillation.mmd import MmdConfig, mmd_terms
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.distillation.targets import teacher_targets
from sdtt_jax.distillation.trajectories import Trajectories, hindsight_noise
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.cloze import scores
from sdtt_jax.evaluation.continuations import Continuation, RowLayout
from sdtt_jax.evaluation.judge import score_texts
from sdtt_jax.evaluation.likelihood import text_bounds
from sdtt_jax.evaluation.mauve import text_features
from sdtt_jax.model.batches import join
from sdtt_jax.networks import CausalConfig, CausalNetwork
from sdtt_jax.networks.config import CoupledConfig, NoiseConfig
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.objectives import judge_loss
from tests.worlds import (
    MASK,
    VOCAB,
    TableDenoiser,
    as_causal,
    as_model,
    noisy_params,
    random_table,
    tiny_network,
)

KEY, STEPS, ONE = jax.random.key(0), SamplerConfig(2), BoundConfig()
MODEL = as_model(TableDenoiser(), random_table(1))
NETWORK = CausalNetwork(
    CausalConfig(vocab_size=VOCAB, length=8, num_layers=1, embed_dim=8, num_heads=2)
)
BEHIND = RowLayout(bos_id=0)

NOISY = {
    "logits": MODEL.logits,
    "log_probs": MODEL.log_probs,
    "denoise": lambda x: MODEL.denoise(KEY, x, STEPS).x,
    "sample": lambda x: sample(MODEL.diffusion, MODEL.params, KEY, x, STEPS)[0].x,
    "states": lambda x: list(MODEL.states(KEY, x, STEPS))[-1].x,
    "batches": lambda x: join([write() for write in MODEL.batches(KEY, x, STEPS)]).tokens,
}
CLEAN = {
    "score": lambda x: MODEL.score(x, KEY),
    "nelbo": lambda x: nelbo(MODEL.diffusion, MODEL.params, x, KEY),
    "denoising_terms": lambda x: denoising_terms(MODEL.diffusion, MODEL.params, x, KEY).nll,
    "distillation_terms": lambda x: distillation_terms(
        MODEL.diffusion, MODEL.params, MODEL.params, x, 0.5, KEY, DistillConfig()
    ),
    "bounds": lambda x: join(
        [bounds()[:2] for bounds in text_bounds(MODEL, x, KEY, ONE, batch_size=2)]
    ),
    "causal logits": lambda x: judge().logits(x),
    "causal log_probs": lambda x: judge().log_probs(x),
    "causal_nll": lambda x: causal_nll(NETWORK, judge().params, x, 0),
    "generate": lambda x: generate(NETWORK, judge().params, KEY, prompt=x, num_tokens=2),
    "continued": lambda x: join([write() for write in judge().batches(KEY, x, 2)]).tokens,
}
# Losses to train on, which refuse before they draw or compute anything, and need no parameters for that.
TEACHER, MIXTURE = MODEL.diffusion, NoiseConfig("latent", num_values=2)
LATENT = MaskedDiffusion(
    CoupledDenoiser(CoupledConfig.of(tiny_network().config, MIXTURE)), TEACHER.schedule
)
LOSSES = {
    "alpha": lambda x: alpha_terms(TEACHER, {}, x, KEY, AlphaConfig()),
    "idlm": lambda x: idlm_terms(TEACHER, {}, {}, x, KEY, IdlmConfig()),
    "mmd": lambda x: mmd_terms(TEACHER, {}, {}, None, x, KEY, MmdConfig()),
    "mixture": lambda x: mixture_terms(LATENT, {}, TEACHER, {}, x, KEY, MixtureConfig()),
    "coupled": lambda x: coupled_terms(
        LATENT, {}, Trajectories(None, x), KEY, CoupledDistillConfig()
    ),
    "hindsight": lambda x: hindsight_noise(TEACHER, {}, None, x, STEPS),
    "judge": lambda x: judge_loss(NETWORK, 0, every=2)({}, {}, x, KEY),
    "causal_loss": lambda x: causal_loss(NETWORK, {}, x, 0),
}
# Functions of noisy texts that refuse in the same way.
STATES = {
    "targets": lambda x: teacher_targets(
        TEACHER, {}, KEY[None], x, np.ones(2), 0.5, DistillConfig()
    ),
    "divergence": lambda x: divergence_terms(TEACHER, {}, {}, x, None, None, "mse"),
}
ON_THE_HOST = ("batches", "bounds", "continued")
# Functions that leave it to their callers to compile them.
UNCOMPILED = ("sample", "nelbo", "denoising_terms", "distillation_terms", "causal_nll")
# Functions of texts of any lengths.
RAGGED = {
    "scores": lambda x: score_texts(judge(), list(x), batch_size=2, first_token="given").nll,
    "features": lambda x: text_features(judge(), list(x), batch_size=2),
    "suffixes": lambda x: _scores(MODEL, x, RowLayout()).nll,
    "hits": lambda x: _scores(MODEL, x, RowLayout()).greedy,
    "causal suffixes": lambda x: _scores(judge(), x, BEHIND).nll,
}


@functools.cache
def judge():
    return as_causal(NETWORK, noisy_params(NETWORK, 0))


def _scores(model, rows, layout):
    items = [Continuation(row[:1], row[1:]) for row in np.asarray(rows)]
    return scores(model, items, KEY, ONE, layout, batch_size=2)


@pytest.mark.parametrize("name", NOISY | CLEAN | RAGGED | LOSSES | STATES)
@pytest.mark.parametrize("wrong", [-1, MASK + 1, 30_522, 2**31, 2**32, 2**40])
def test_an_id_that_does_not_exist_is_refused(name, wrong):
    """2^32 and 2^40 would become 0 in 32 bits."""
    rows = np.array([[0, 1, 2], [0, wrong, 2]])
    with pytest.raises(ConfigError, match=f"there is no token {wrong}; ids are 0 … "):
        (NOISY | CLEAN | RAGGED | LOSSES | STATES)[name](rows)


@pytest.mark.parametrize("name", CLEAN | RAGGED | LOSSES)
def test_mask_stands_in_no_text(name):
    with pytest.raises(ConfigError, match=f"there is no token {MASK}; ids are 0 … {VOCAB - 1}"):
        (CLEAN | RAGGED | LOSSES)[name](np.array([[0, MASK, 2]]))


@pytest.mark.parametrize("name", NOISY | CLEAN | LOSSES | STATES)
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros(3, np.int32), r"not \[3\]; put a single text into a batch"),
        (np.zeros((0, 3), np.int32), r"at least one text of one token, not \[0, 3\]"),
        (np.zeros((2, 0), np.int32), r"not \[2, 0\]"),
        (np.zeros((1, 2, 3), np.int32), r"not \[1, 2, 3\]"),
        (np.int32(1), r"not \[\]"),
        ([], r"not \[0\]"),
        ([[0.0, 1.0, 2.0]], "whole numbers, not float64"),
        (np.ones((1, 3), bool), "whole numbers, not bool"),
        ([["0", "1", "2"]], "whole numbers, not <U1"),
        ([[0, 1, 2**70]], f"there is no token {2**70}; ids are 0 … "),
        ([[0, 1, 2**63]], f"there is no token {2**63}; ids are 0 … "),
        ([[0, 1, 2], [0, 1]], "differ in length"),
        (None, "whole numbers, not object"),
    ],
    ids=str,
)
def test_another_shape_or_kind_is_refused(name, rows, message):
    with pytest.raises(ConfigError, match=message):
        (NOISY | CLEAN | LOSSES | STATES)[name](rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [([[1.9, 0, 0]], "whole numbers"), ([[MASK + 1, 0, 0]], f"there is no token {MASK + 1}")],
)
def test_what_a_text_is_to_keep_are_tokens(given, message):
    with pytest.raises(ConfigError, match=message):
        prior_sample(1, 3, MASK, given, [[True, False, False]])
    # What does not stay may be anything.
    assert prior_sample(1, 3, MASK, [[0, 99, -1]], [[1, 0, 0]]).tolist() == [[0, MASK, MASK]]


ROWS = np.array([[0, 1, 2], [2, 1, 0]], np.int32)


def _called(name, x):
    """The function's value, compiled as a whole where it would compile its operations one by one."""
    call = (NOISY | CLEAN)[name]
    return jax.jit(lambda: call(x))() if name in UNCOMPILED else call(x)


@pytest.mark.parametrize("name", NOISY | CLEAN)
def test_whole_numbers_of_every_kind_are_taken(name):
    expected = _called(name, ROWS)
    for same in (ROWS.astype(np.uint8), jnp.asarray(ROWS), ROWS.tolist()):
        np.testing.assert_array_equal(_called(name, same), expected)


@pytest.mark.parametrize("name", [name for name in NOISY | CLEAN if name not in ON_THE_HOST])
def test_a_model_may_be_compiled_into_something_else(name):
    """Traced arrays have no values to check."""
    call = (NOISY | CLEAN)[name]
    np.testing.assert_allclose(jax.jit(call)(ROWS), _called(name, ROWS), rtol=1e-6)


@pytest.mark.parametrize("num_samples", [0, -1, 1.5, True])
def test_no_samples_are_refused(num_samples):
    for call in (
        lambda: MODEL.score(np.zeros((1, 3), np.int32), KEY, num_samples),
        lambda: MODEL.prior(num_samples),
        lambda: judge().sample(KEY, num_samples, 2),
    ):
        with pytest.raises(ConfigError, match="num_samples must be"):
            call()


def test_a_key_in_the_place_of_tokens_is_named():
    with pytest.raises(ConfigError, match="tokens must be whole numbers, not key"):
        MODEL.logits(KEY)
