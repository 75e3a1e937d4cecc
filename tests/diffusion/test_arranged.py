"""Texts side by side, prompts and padding. Oracle: a loop over the texts, each alone in its sequence."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import sdtt_jax
from sdtt_jax.diffusion.estimators import BoundConfig
from sdtt_jax.diffusion.nelbo import NelboConfig, masked_batch, masked_nll, nelbo
from sdtt_jax.diffusion.sampler import SamplerConfig, sample
from sdtt_jax.distillation.alpha import AlphaConfig
from sdtt_jax.distillation.block import draw_block
from sdtt_jax.distillation.idlm import IdlmConfig
from sdtt_jax.distillation.loss import distillation_batch
from sdtt_jax.distillation.targets import teacher_targets
from sdtt_jax.evaluation.likelihood import text_bounds
from sdtt_jax.objectives import (
    alpha_loss,
    arranged,
    distill_loss,
    idlm_loss,
    teacher_loss,
)
from sdtt_jax.ops.sequences import Sequences, arrange
from tests.worlds import as_model, noisy_params

BOS, EOS, VOCAB, LENGTH = 1, 2, 12, 16
SIZES = {"num_layers": 1, "embed_dim": 16, "num_heads": 2}
DENOISER = sdtt_jax.Denoiser(sdtt_jax.DenoiserConfig(VOCAB, length=LENGTH, **SIZES))
DIFFUSION = sdtt_jax.MaskedDiffusion(DENOISER, sdtt_jax.make_schedule())
PARAMS = functools.partial(noisy_params, DENOISER, 0, spread=0.3)
TEACHER = functools.partial(noisy_params, DENOISER, 1, spread=0.3)
# Of a network that is less sure: the most probable tokens depend on the other texts that it sees.
UNSURE = functools.partial(noisy_params, DENOISER, 0, spread=0.1)
KEY = jax.random.key(7)
LOGITS = jax.jit(
    lambda network, params, tokens, segments=None: network.logits(
        params, network.hidden(params, tokens, segments=segments)
    )[..., :VOCAB],
    static_argnums=0,
)
MASKED_NLL = jax.jit(masked_nll, static_argnames="diffusion")
NELBO, DISTILL = NelboConfig(antithetic=False), sdtt_jax.DistillConfig(divergence="kl-fwd")


def _texts(lengths, seed=0, vocab=VOCAB):
    """Texts that end with EOS; no other token is special."""
    rng = np.random.default_rng(seed)
    return [np.append(rng.integers(3, vocab, n - 1), EOS).astype(np.int32) for n in lengths]


def _padded(text, length):
    return np.pad(text, (0, length - len(text)), constant_values=EOS)


# A batch of each kind. Texts have few different lengths, so that few programs are compiled for single ones.
PAIRS = [
    np.insert(text, split, BOS) for text, split in zip(_texts((11, 11), 1), (3, 6), strict=True)
]
BATCHES = {
    "documents": np.stack(
        [np.concatenate(_texts((5, 1, 5, 5), 2)), np.concatenate(_texts((5, 5, 5, 1), 3))]
    ),
    "padded": np.stack([_padded(text, LENGTH) for text in _texts((12, 16), 4)]),
    "prompted": np.stack([_padded(text, LENGTH) for text in PAIRS]),
}


def _sequences(kind):
    return Sequences(kind, BOS, EOS)


def _slices(kind):
    """`(row, slice)` of every text, padding left out."""
    for row, tokens in enumerate(BATCHES[kind]):
        start = 0
        while start < LENGTH:
            stop = start + int(np.argmax(tokens[start:] == EOS)) + 1
            yield row, slice(start, stop)
            if kind != "documents":
                break
            start = stop


@functools.partial(jax.jit, static_argnames="kind")
def _arrangement(tokens, kind):
    return arrange(tokens, _sequences(kind))


def _free(kind):
    return np.asarray(_arrangement(BATCHES[kind], kind).free)


@functools.partial(jax.jit, static_argnames="function")
def _compiled(function, tokens, arrangement):
    return function(DIFFUSION.within(arrangement), tokens)


def _on_batch(kind, function, tokens=None):
    """`function(model, tokens)` on a kind's batch, compiled once for all kinds, as NumPy arrays."""
    tokens = BATCHES[kind] if tokens is None else tokens
    return jax.device_get(_compiled(function, tokens, _arrangement(tokens, kind)))


def _model(kind, params=None):
    """A model as a user would hold it; only BOS and EOS of its tokenizer are used."""
    model = as_model(DENOISER, PARAMS() if params is None else params)
    facts = model.facts | {"sequences": kind}
    return dataclasses.replace(model, facts=facts, tokenizer=_sequences(kind))


def _denoising(model, x):
    """What is masked, the loss, and the bound."""
    loss = teacher_loss(model, NELBO)(PARAMS(), {}, x, KEY)
    return masked_batch(model, x, KEY, NELBO), loss, nelbo(model, PARAMS(), x, KEY, NELBO)


@pytest.mark.parametrize("kind", ["documents", "prompted"])
def test_the_denoising_loss_is_that_of_a_loop_over_texts(kind):
    """With the batch's masks; a text's loss is that of `masked_nll`, with the weight of its row."""
    tokens, free = BATCHES[kind], _free(kind)
    (_, weight, x_t), loss, bound = _on_batch(kind, _denoising)
    sigma = np.asarray(DIFFUSION.schedule.sigma(np.full(1, 0.5, np.float32)))
    expected = counted = 0.0
    for row, place in _slices(kind):
        clean, noisy = tokens[row, place][None], x_t[row, place][None]
        prompt = int(np.argmax(clean[0] == BOS)) + 1 if kind == "prompted" else 0
        assert not (noisy[:, :prompt] == DIFFUSION.mask_id).any()
        nll = np.asarray(MASKED_NLL(DIFFUSION, PARAMS(), clean, noisy, sigma))
        expected += float(weight[row] * nll.sum())
        counted += clean.shape[1] - prompt
    assert float(loss.weight) == counted
    np.testing.assert_allclose(loss.total, expected, rtol=1e-5)
    assert not ((x_t == DIFFUSION.mask_id) & ~free).any()
    np.testing.assert_allclose((bound * free.sum(axis=1)).sum(), expected, rtol=1e-5)


def test_a_sequence_in_which_nothing_counts_has_no_bound():
    """It was 0 nats per token, which no text reaches."""
    tokens = np.stack([BATCHES["prompted"][0], [*[5] * (LENGTH - 1), BOS]]).astype(np.int32)
    _, _, bound = _on_batch("prompted", _denoising, tokens)
    assert np.isnan(bound).tolist() == [False, True]


def _distilling(model, x):
    """What is masked, and the loss of a step that reveals nothing."""
    # Traced, because a step of 0 is refused where it is known.
    context = {"teacher_params": TEACHER(), "dt": jnp.float32(0.0) * x[0, 0]}
    loss = distill_loss(model, DISTILL)(PARAMS(), context, x, KEY)
    return distillation_batch(model, x, KEY, DISTILL)[1], loss


@pytest.mark.parametrize("kind", ["documents", "prompted"])
def test_distillation_is_that_of_a_loop_over_texts(kind):
    """The teacher's steps reveal nothing, because their draws are for whole rows; so a target is what the
    teacher says of the text by itself."""
    x_t, loss = _on_batch(kind, _distilling)
    expected = count = 0.0
    for row, place in _slices(kind):
        noisy = x_t[row, place][None]
        masked = noisy[0] == DIFFUSION.mask_id
        log_p, log_q = (
            log_softmax(np.asarray(LOGITS(DENOISER, params(), noisy), np.float64), axis=-1)[0]
            for params in (TEACHER, PARAMS)
        )
        expected += ((np.exp(log_p) * (log_p - log_q)).sum(-1) * masked).sum()
        count += int(masked.sum())
    assert float(loss.weight) == count > 0
    np.testing.assert_allclose(loss.total, expected, rtol=1e-4)


def test_the_teacher_free_loss_is_that_of_a_loop_over_texts():
    """Each text's block has a probability of its own, rather than one product over all texts of a row."""
    config, tokens = AlphaConfig(0.3, num_calls=2), BATCHES["documents"]
    x_t, _, revealed, _ = _on_batch(
        "documents", lambda model, x: draw_block(model, x, KEY, config.num_calls)
    )
    expected = 0.0
    for row, place in _slices("documents"):
        logits = np.asarray(LOGITS(DENOISER, UNSURE(), x_t[row, place][None]), np.float64)
        log_p = log_softmax(logits[0], axis=-1)
        own = log_p[np.arange(place.stop - place.start), tokens[row, place]]
        expected += (1 - np.exp(0.3 * own[revealed[row, place]].sum())) / 0.3
    loss_of = functools.partial(alpha_loss, config=config)
    loss = jax.jit(arranged(loss_of, DIFFUSION, _sequences("documents")))(UNSURE(), {}, tokens, KEY)
    np.testing.assert_allclose(loss.total, expected, rtol=1e-4)
    assert float(loss.weight) == int(revealed.sum()) > 0


def test_inverse_distillation_is_a_sum_over_texts_that_know_nothing_of_each_other():
    """Changing the second text changes the sum by as much whichever text is first; the draws are the same."""
    key = jax.random.key(2)  # not of the first call, at which all is masked and texts do not matter
    loss_of = functools.partial(idlm_loss, config=IdlmConfig(num_calls=2))
    loss = jax.jit(arranged(loss_of, DIFFUSION, _sequences("documents")))
    student, fake, teacher = (noisy_params(DENOISER, seed) for seed in (0, 2, 1))
    params, context = {"student": student, "fake": fake}, {"teacher_params": teacher}
    a, b, c, d = _texts((8, 8, 8, 8), 6)

    def total(*texts):
        clean = np.concatenate(texts)[None]
        return float(loss(params, context, clean, key).total)

    assert abs(total(a, b) - total(a, c)) > 0.1
    assert total(a, b) - total(a, c) == pytest.approx(total(d, b) - total(d, c), abs=1e-4)


def test_inverse_distillation_leaves_prompt_and_padding_alone():
    """Neither the student nor the fake or the teacher sees MASK there. Oracle: the batch itself."""
    tokens, free, seen = BATCHES["prompted"], _free("prompted"), []

    class Watched(sdtt_jax.Denoiser):
        def hidden(self, params, tokens, *more, **inputs):
            jax.debug.callback(lambda tokens: seen.append(np.asarray(tokens)), tokens)
            return super().hidden(params, tokens, *more, **inputs)

    diffusion = dataclasses.replace(DIFFUSION, denoiser=Watched(DENOISER.config))
    loss_of = functools.partial(idlm_loss, config=IdlmConfig(num_calls=1))
    loss = jax.jit(arranged(loss_of, diffusion, _sequences("prompted")))
    loss({"student": PARAMS(), "fake": UNSURE()}, {"teacher_params": TEACHER()}, tokens, KEY)
    jax.effects_barrier()
    assert len(seen) == 3
    for each in seen:
        np.testing.assert_array_equal(each[~free], tokens[~free])
        assert (each[free] == DIFFUSION.mask_id).any()


def test_blocks_and_features_leave_prompt_and_padding_alone():
    """What `alpha`, `idlm` and `mmd` begin with, and what `mmd` compares."""
    tokens, free = BATCHES["prompted"], _free("prompted")
    (x_t, _, revealed, _), states = _on_batch(
        "prompted",
        lambda model, x: (
            draw_block(model, x, KEY, 1),
            model.denoiser.layer_states(PARAMS(), x, 1),
        ),
    )
    np.testing.assert_array_equal(x_t == DIFFUSION.mask_id, free)
    np.testing.assert_array_equal(revealed, free)
    layer_states = jax.jit(lambda x: DENOISER.layer_states(PARAMS(), x, 1))
    for row, place in _slices("prompted"):
        alone = layer_states(tokens[row, place][None])
        np.testing.assert_allclose(states[row, place], alone[0], atol=1e-5)


def test_two_steps_of_a_teacher_know_nothing_of_other_texts():
    """With the same draws and another text beside it, the first text has the same targets."""
    config, dt = sdtt_jax.DistillConfig(num_distill_steps=2), jnp.float32(0.3)
    first, *others = _texts((8, 8, 8), 5)

    @jax.jit
    def targets(clean):
        model = DIFFUSION.within(arrange(clean, _sequences("documents")))
        x_t = clean.at[:, jnp.array([1, 3, 9, 12])].set(DIFFUSION.mask_id)
        return teacher_targets(model, TEACHER(), KEY[None], x_t, jnp.full(1, 0.7), dt, config)[0, 0]

    one, other = (np.asarray(targets(np.concatenate([first, text])[None])) for text in others)
    np.testing.assert_allclose(one[:8], other[:8], atol=1e-6)
    assert np.abs(one[8:] - other[8:]).max() > 1e-2


@pytest.mark.parametrize("estimator", ["antithetic", "low-variance"])
def test_bounds_count_what_is_free_alone(estimator):
    """A network that finds all tokens equally likely has a bound of log(vocabulary) for each counted token.

    n = 2 x 2048 maskings, seed 7; within 4 standard errors.
    """
    tokens, zeros = BATCHES["prompted"], jax.tree.map(np.zeros_like, PARAMS())
    config = BoundConfig(estimator, 2048)
    [bounds] = [
        batch()
        for batch in text_bounds(_model("prompted", zeros), tokens, KEY, config, batch_size=2)
    ]
    masked, free = np.asarray(bounds.masked), _free("prompted")
    assert (masked <= free.sum(axis=1)[:, None]).all()
    nats = np.asarray(bounds.nelbo)
    error = nats.std(axis=1) / np.sqrt(nats.shape[1])
    assert (np.abs(nats.mean(axis=1) - np.log(VOCAB)) < 4 * error + 0.01).all()


def test_the_sampler_fills_a_given_layout_text_by_text():
    """At one call with the most probable tokens, which are those of each text by itself."""
    config = SamplerConfig(1, top_k=1)
    tokens = BATCHES["documents"]
    x_init = np.where(tokens == EOS, EOS, DIFFUSION.mask_id).astype(np.int32)
    x_init[:, 1] = tokens[:, 1]
    together = _on_batch(
        "documents", lambda model, x: sample(model, UNSURE(), KEY, x, config)[0].x, x_init
    )
    for row, place in _slices("documents"):
        text = x_init[row, place]
        best = np.asarray(LOGITS(DENOISER, UNSURE(), text[None]))[0].argmax(axis=-1)
        expected = np.where(text == DIFFUSION.mask_id, best, text)
        np.testing.assert_array_equal(together[row, place], expected)


def test_a_model_leaves_prompt_and_padding_as_they_are():
    model, given = _model("prompted"), [0, 1, 2, 3, *range(8, LENGTH)]
    x_init = np.array([[5, 6, 7, BOS, *4 * [DIFFUSION.mask_id], *8 * [EOS]]], np.int32)
    longer = np.pad(x_init[:, :9], ((0, 0), (0, LENGTH - 9)), constant_values=3)
    config = SamplerConfig(4)
    found = np.asarray(model.denoise(KEY, x_init, config).x)
    np.testing.assert_array_equal(found[:, given], x_init[:, given])
    *_, last = model.states(KEY, x_init, config)
    np.testing.assert_array_equal(found, last.x)
    # Nothing after the EOS that ends the text is seen, whatever it is.
    others = np.asarray(model.denoise(KEY, longer, config).x)
    np.testing.assert_array_equal(found[:, :8], others[:, :8])


HEARD = []


class Listening(sdtt_jax.Denoiser):
    """A network that notes the noise it is told."""

    def hidden(self, params, tokens, sigma=None, *, segments=None):
        jax.debug.callback(lambda sigma: HEARD.append(float(sigma[0])), sigma, ordered=True)
        return super().hidden(params, tokens, segments=segments)


@functools.partial(jax.jit, static_argnames="mode")
def _listened(x, arrangement, mode):
    """A generation of a network that is equally unsure of all tokens: one a call."""
    model = sdtt_jax.MaskedDiffusion(Listening(DENOISER.config), DIFFUSION.schedule)
    flat, config = jax.tree.map(jnp.zeros_like, PARAMS()), SamplerConfig(3, mode=mode)
    return sample(model.within(arrangement), flat, KEY, x, config)[0].x


@pytest.mark.parametrize("mode", ["confidence", "entropy-bounded:bound=0"])
@pytest.mark.parametrize(
    ("kind", "begin", "counted"), [("padded", [5, 6, 7], 7), ("prompted", [5, 6, BOS], 4)]
)
def test_a_network_is_told_how_much_is_masked_of_what_training_masks(mode, kind, begin, counted):
    """Oracle: the count by hand; three masked tokens and an EOS count, a prompt and padding do not."""
    HEARD.clear()
    x = np.array([_padded([*begin, *3 * [VOCAB], EOS], LENGTH)], np.int32)
    _listened(x, _arrangement(x, kind), mode)
    jax.effects_barrier()
    expected = np.array([3, 2, 1]) / counted * DIFFUSION.schedule.move_chance(np.float32(1.0))
    np.testing.assert_allclose(1 - np.exp(-np.array(HEARD)), expected, rtol=1e-4)
