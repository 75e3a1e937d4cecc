"""Texts side by side, prompts and padding. Oracle: a loop over the texts, each alone in its sequence."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import sdtt_jax
from sdtt_jax.causal.nll import causal_nll
from sdtt_jax.diffusion.estimators import BoundConfig
from sdtt_jax.diffusion.nelbo import NelboConfig, masked_batch, masked_nll, nelbo
from sdtt_jax.diffusion.sampler import SamplerConfig, sample
from sdtt_jax.distillation.alpha import AlphaConfig
from sdtt_jax.distillation.block import draw_block
from sdtt_jax.distillation.idlm import IdlmConfig
from sdtt_jax.distillation.loss import distillation_batch
from sdtt_jax.distillation.targets import teacher_targets
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.likelihood import text_bounds
from sdtt_jax.networks import CausalConfig, CausalNetwork
from sdtt_jax.networks.attention.dispatch import LENGTH_BY_HEAD
from sdtt_jax.networks.config import CoupledConfig, LlamaDenoiserConfig, NoiseConfig
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.networks.gpt2 import GPT2Config, GPT2Network
from sdtt_jax.networks.llama import LlamaDenoiser
from sdtt_jax.objectives import (
    alpha_loss,
    arranged,
    distill_loss,
    idlm_loss,
    judge_loss,
    teacher_loss,
)
from sdtt_jax.ops.noise import draw_noise
from sdtt_jax.ops.sequences import Sequences, arrange
from tests.worlds import as_causal, as_model, noisy_params

BOS, EOS, VOCAB, LENGTH = 1, 2, 12, 16
SIZES = {"num_layers": 1, "embed_dim": 16, "num_heads": 2}
DENOISER = sdtt_jax.Denoiser(sdtt_jax.DenoiserConfig(VOCAB, length=LENGTH, **SIZES))
DIFFUSION = sdtt_jax.MaskedDiffusion(DENOISER, sdtt_jax.make_schedule())
PARAMS, TEACHER = noisy_params(DENOISER, 0, spread=0.3), noisy_params(DENOISER, 1, spread=0.3)
# Of a network that is less sure: the most probable tokens depend on the other texts that it sees.
UNSURE = noisy_params(DENOISER, 0, spread=0.1)
KEY = jax.random.key(7)
HIDDEN = jax.jit(
    lambda network, params, tokens, segments: network.hidden(params, tokens, segments=segments),
    static_argnums=0,
)
LOGITS = jax.jit(
    lambda network, params, tokens, segments=None: network.logits(
        params, network.hidden(params, tokens, segments=segments)
    )[..., :VOCAB],
    static_argnums=0,
)
MASKED_NLL = jax.jit(masked_nll, static_argnames="diffusion")


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
    "padded": np.stack([_padded(text, LENGTH) for text in _texts((7, 16), 4)]),
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


def _within(kind, tokens):
    return DIFFUSION.within(arrange(tokens, _sequences(kind)))


def _on_batch(kind, function):
    """`function(model, tokens)` on a kind's batch, compiled, as NumPy arrays."""
    return jax.device_get(jax.jit(lambda x: function(_within(kind, x), x))(BATCHES[kind]))


@functools.partial(jax.jit, static_argnames="kind")
def _segments(tokens, kind="documents"):
    return arrange(tokens, _sequences(kind)).segments


def _free(kind):
    return _on_batch(kind, lambda model, _: model.free)


def _model(kind, params=PARAMS):
    """A model as a user would hold it; only BOS and EOS of its tokenizer are used."""
    model = as_model(DENOISER, params)
    facts = model.facts | {"sequences": kind}
    return dataclasses.replace(model, facts=facts, tokenizer=_sequences(kind))


def _llama(**fields):
    config = LlamaDenoiserConfig(
        VOCAB, length=LENGTH, num_kv_heads=1, mlp_dim=20, **SIZES, **fields
    )
    return LlamaDenoiser(config)


def _long():
    """A network whose attention computes one head at a time."""
    config = sdtt_jax.DenoiserConfig(VOCAB, length=LENGTH_BY_HEAD + 64, **SIZES)
    return sdtt_jax.Denoiser(config)


NETWORKS = {
    "all heads at once": (DENOISER, (8, 8)),
    "one head after the other": (_long(), (LENGTH_BY_HEAD, 64)),
    "llama, shifted": (_llama(shift=True), (8, 8)),
    "causal": (CausalNetwork(CausalConfig(VOCAB, length=LENGTH, **SIZES)), (8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_a_text_packed_with_others_are_those_of_it_alone(name):
    """Rotations count positions through all texts, and in float32 they round differently at other positions.

    So equality is to 1e-5 for logits as large as those of trained networks, here below 10.
    """
    network, lengths = NETWORKS[name]
    params, texts = noisy_params(network, 2, spread=0.15), _texts(lengths)
    tokens = np.concatenate(texts)[None]
    together = np.asarray(LOGITS(network, params, tokens, _segments(tokens)))[0]
    ends = np.cumsum(lengths)
    for text, found in zip(texts, np.split(together, ends[:-1]), strict=True):
        alone = np.asarray(LOGITS(network, params, text[None]))[0]
        assert np.abs(alone).max() < 10
        np.testing.assert_allclose(found, alone, atol=1e-5)
    # Without segments they see each other.
    assert np.abs(together - np.asarray(LOGITS(network, params, tokens))[0]).max() > 1e-3


def test_open_edges_stay_within_a_text():
    network = _llama()
    params, tokens = noisy_params(network, 3, spread=0.3), BATCHES["documents"]
    segments, edges = _segments(tokens), np.ones((*tokens.shape, LENGTH), bool)
    opened = jax.jit(network.hidden)(params, tokens, None, edges, segments=segments)
    np.testing.assert_allclose(opened, HIDDEN(network, params, tokens, segments), atol=2e-6)


@pytest.mark.parametrize("kind", ["documents", "prompted"])
def test_the_denoising_loss_is_that_of_a_loop_over_texts(kind):
    """With the batch's masks; a text's loss is that of `masked_nll`, with the weight of its row."""
    tokens, free, config = BATCHES[kind], _free(kind), NelboConfig(antithetic=False)
    _, weight, x_t = _on_batch(kind, lambda model, x: masked_batch(model, x, KEY, config))
    sigma = np.asarray(DIFFUSION.schedule.sigma(jnp.full(1, 0.5)))
    expected = counted = 0.0
    for row, place in _slices(kind):
        clean, noisy = tokens[row, place][None], x_t[row, place][None]
        prompt = int(np.argmax(clean[0] == BOS)) + 1 if kind == "prompted" else 0
        assert not (noisy[:, :prompt] == DIFFUSION.mask_id).any()
        nll = np.asarray(MASKED_NLL(DIFFUSION, PARAMS, clean, noisy, sigma))
        expected += float(weight[row] * nll.sum())
        counted += clean.shape[1] - prompt
    loss_of = functools.partial(teacher_loss, config=config)
    loss = jax.jit(arranged(loss_of, DIFFUSION, _sequences(kind)))(PARAMS, {}, tokens, KEY)
    assert float(loss.weight) == counted
    np.testing.assert_allclose(loss.total, expected, rtol=1e-5)
    assert not ((x_t == DIFFUSION.mask_id) & ~free).any()
    bound = _on_batch(kind, lambda model, x: nelbo(model, PARAMS, x, KEY, config))
    np.testing.assert_allclose((bound * free.sum(axis=1)).sum(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["documents", "prompted"])
def test_distillation_is_that_of_a_loop_over_texts(kind):
    """The teacher's steps reveal nothing, because their draws are for whole rows; targets and divergence."""
    config, dt = sdtt_jax.DistillConfig(divergence="kl-fwd"), np.float32(0.0)

    def targets(model, tokens):
        t, x_t, key = distillation_batch(model, tokens, KEY, config)
        keys = jax.random.split(key, 1)
        return x_t, teacher_targets(model, TEACHER, keys, x_t, t, jnp.float32(dt), config)[0]

    x_t, together = _on_batch(kind, targets)
    expected = count = 0.0
    for row, place in _slices(kind):
        noisy = x_t[row, place][None]
        alone = HIDDEN(DENOISER, TEACHER, noisy, None)
        np.testing.assert_allclose(together[row, place], alone[0], atol=1e-5)
        masked = noisy[0] == DIFFUSION.mask_id
        log_p, log_q = (
            log_softmax(np.asarray(LOGITS(DENOISER, params, noisy), np.float64), axis=-1)[0]
            for params in (TEACHER, PARAMS)
        )
        expected += ((np.exp(log_p) * (log_p - log_q)).sum(-1) * masked).sum()
        count += int(masked.sum())
    loss_of = functools.partial(distill_loss, config=config)
    context = {"teacher_params": TEACHER, "dt": dt}
    loss = jax.jit(arranged(loss_of, DIFFUSION, _sequences(kind)))
    loss = loss(PARAMS, context, BATCHES[kind], KEY)
    assert float(loss.weight) == count > 0
    np.testing.assert_allclose(loss.total, expected, rtol=1e-4)


def test_the_teacher_free_loss_is_that_of_a_loop_over_texts():
    """Each text's block has a probability of its own, rather than one product over all texts of a row."""
    config, tokens = AlphaConfig(0.3, num_calls=2), BATCHES["documents"]
    x_t, _, revealed = _on_batch(
        "documents", lambda model, x: draw_block(model, x, KEY, config.num_calls)
    )
    expected = 0.0
    for row, place in _slices("documents"):
        logits = np.asarray(LOGITS(DENOISER, UNSURE, x_t[row, place][None]), np.float64)
        log_p = log_softmax(logits[0], axis=-1)
        own = log_p[np.arange(place.stop - place.start), tokens[row, place]]
        expected += (1 - np.exp(0.3 * own[revealed[row, place]].sum())) / 0.3
    loss_of = functools.partial(alpha_loss, config=config)
    loss = jax.jit(arranged(loss_of, DIFFUSION, _sequences("documents")))(UNSURE, {}, tokens, KEY)
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


def test_blocks_and_features_leave_prompt_and_padding_alone():
    """What `alpha`, `idlm` and `mmd` begin with, and what `mmd` compares."""
    tokens, free = BATCHES["prompted"], _free("prompted")
    x_t, _, revealed = _on_batch("prompted", lambda model, x: draw_block(model, x, KEY, 1))
    np.testing.assert_array_equal(x_t == DIFFUSION.mask_id, free)
    np.testing.assert_array_equal(revealed, free)
    states = _on_batch("prompted", lambda model, x: model.denoiser.layer_states(PARAMS, x, 1))
    layer_states = jax.jit(lambda x: DENOISER.layer_states(PARAMS, x, 1))
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
        return teacher_targets(model, TEACHER, KEY[None], x_t, jnp.full(1, 0.7), dt, config)[0, 0]

    one, other = (np.asarray(targets(np.concatenate([first, text])[None])) for text in others)
    np.testing.assert_allclose(one[:8], other[:8], atol=1e-6)
    assert np.abs(one[8:] - other[8:]).max() > 1e-2


@pytest.mark.parametrize("estimator", ["antithetic", "low-variance"])
def test_bounds_count_what_is_free_alone(estimator):
    """A network that finds all tokens equally likely has a bound of log(vocabulary) for each counted token.

    n = 2 x 2048 maskings, seed 7; within 4 standard errors.
    """
    tokens, zeros = BATCHES["prompted"], jax.tree.map(np.zeros_like, PARAMS)
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


@pytest.mark.parametrize("kind", ["documents", "padded"])
def test_the_causal_loss_is_that_of_a_loop_over_texts(kind):
    network, _ = NETWORKS["causal"]
    params, tokens = noisy_params(network, 4, spread=0.3), BATCHES[kind]
    alone = jax.jit(causal_nll, static_argnames="network")
    expected = sum(
        np.asarray(alone(network, params, tokens[row, place][None], BOS)).sum()
        for row, place in _slices(kind)
    )
    loss = jax.jit(judge_loss(network, BOS, _sequences(kind)))(params, {}, tokens, KEY)
    np.testing.assert_allclose(loss.total, expected, rtol=1e-5)
    assert float(loss.weight) == sum(place.stop - place.start for _, place in _slices(kind))


def test_the_sampler_fills_a_given_layout_text_by_text():
    """At one call with the most probable tokens, each text is the same as in a sequence of its own."""
    config = SamplerConfig(1, top_k=1)
    tokens = BATCHES["documents"]
    x_init = np.where(tokens == EOS, EOS, DIFFUSION.mask_id).astype(np.int32)
    x_init[:, 1] = tokens[:, 1]
    in_rows = jax.jit(lambda x: sample(_within("documents", x), UNSURE, KEY, x, config)[0].x)
    by_itself = jax.jit(lambda x: sample(DIFFUSION, UNSURE, KEY, x, config)[0].x)
    together = np.asarray(in_rows(x_init))
    for row, place in _slices("documents"):
        np.testing.assert_array_equal(together[row, place], by_itself(x_init[row, place][None])[0])


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


@pytest.mark.parametrize("mode", ["confidence", "entropy-bounded:bound=0"])
@pytest.mark.parametrize(
    ("kind", "begin", "counted"), [("padded", [5, 6, 7], 7), ("prompted", [5, 6, BOS], 4)]
)
def test_a_network_is_told_how_much_is_masked_of_what_training_masks(mode, kind, begin, counted):
    """Oracle: the count by hand; three masked tokens and an EOS count, a prompt and padding do not."""
    heard = []

    class Listening(sdtt_jax.Denoiser):
        def hidden(self, params, tokens, sigma=None, *, segments=None):
            jax.debug.callback(lambda sigma: heard.append(float(sigma[0])), sigma, ordered=True)
            return super().hidden(params, tokens, segments=segments)

    model = sdtt_jax.MaskedDiffusion(Listening(DENOISER.config), DIFFUSION.schedule)
    x = np.array([_padded([*begin, *3 * [VOCAB], EOS], LENGTH)], np.int32)
    config, sequences = SamplerConfig(3, mode=mode), _sequences(kind)
    flat = jax.tree.map(jnp.zeros_like, PARAMS)  # equally unsure of all tokens: one a call
    jax.jit(lambda x: sample(model.within(arrange(x, sequences)), flat, KEY, x, config)[0].x)(x)
    jax.effects_barrier()
    expected = np.array([3, 2, 1]) / counted * DIFFUSION.schedule.move_chance(np.float32(1.0))
    np.testing.assert_allclose(1 - np.exp(-np.array(heard)), expected, rtol=1e-4)


def test_networks_that_read_the_whole_sequence_refuse_segments_by_name():
    gpt2 = GPT2Network(GPT2Config(VOCAB, length=LENGTH, **SIZES))
    tokens = BATCHES["documents"]
    segments = _segments(tokens)
    with pytest.raises(ConfigError, match=r"GPT-2 .* cannot be confined to segments"):
        jax.eval_shape(lambda: gpt2.hidden(noisy_params(gpt2, 0), tokens, segments))
    coupled = CoupledDenoiser(CoupledConfig.of(DENOISER.config, NoiseConfig()))
    noise = draw_noise(KEY, tokens.shape, VOCAB, coupled.noise_kind)
    with pytest.raises(ConfigError, match=r"sees noise .* cannot be confined to segments"):
        coupled.hidden({}, tokens, None, noise, segments=segments)


@pytest.mark.parametrize("kind", list(BATCHES))
def test_a_causal_models_score_is_that_of_a_loop_over_texts(kind):
    """Oracle: `causal_nll` of every text by itself, over its tokens behind the prompt."""
    network, _ = NETWORKS["causal"]
    params, tokens = noisy_params(network, 4, spread=0.3), BATCHES[kind]
    model = as_causal(network, params, _sequences(kind))
    model = dataclasses.replace(model, facts=model.facts | {"sequences": kind})
    alone, found = jax.jit(causal_nll, static_argnames="network"), [[] for _ in tokens]
    for row, place in _slices(kind):
        text = tokens[row, place]
        prompt = int(np.argmax(text == BOS)) + 1 if kind == "prompted" else 0
        found[row] += np.asarray(alone(network, params, text[None], BOS))[0, prompt:].tolist()
    np.testing.assert_allclose(model.score(tokens), [np.mean(nats) for nats in found], rtol=1e-5)
