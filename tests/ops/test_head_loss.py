"""Fused losses. Oracle: the same loss over `[batch, length, vocab]`, in float64."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.forward import masked_log_probs
from sdtt_jax.distillation.divergence import DIVERGENCES
from sdtt_jax.ops import rows
from sdtt_jax.ops.categorical import NEG_INFINITY
from sdtt_jax.ops.head_loss import selected_losses, weighted_loss

EMBED = 4


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def apply_head(head, hidden):
    """A head whose last column is padding, like the networks' heads."""
    logits = hidden @ head["kernel"] + head["bias"]
    return jnp.where(jnp.arange(logits.shape[-1]) < logits.shape[-1] - 1, logits, NEG_INFINITY)


# A network whose parameters are those of its head.
NETWORK = types.SimpleNamespace(head_params=lambda head: head, logits=apply_head)


def divergence(name, logits, targets, teacher_head):
    """Divergence from a teacher's head; MASK is the column before the padding."""
    mask_id = logits.shape[-1] - 2
    student = masked_log_probs(logits, mask_id)
    target = masked_log_probs(apply_head(teacher_head, targets), mask_id)
    return DIVERGENCES[name](student, target, mask_id + 1)


def problem(seed, batch, length, vocab, share):
    """Head, states, weights of which about `share` are not zero, targets, and the teacher's head."""
    rng = np.random.default_rng(seed)

    def head():
        return {
            "kernel": rng.standard_normal((EMBED, vocab)),
            "bias": rng.standard_normal(vocab),
        }

    weights = rng.uniform(0.5, 2, (batch, length)) * (rng.uniform(size=(batch, length)) < share)
    weights *= rng.choice([-1, 1], weights.shape)
    states = [rng.standard_normal((batch, length, EMBED)) for _ in range(2)]
    return head(), states[0], weights, states[1], (head(),)


def naive(name, head, hidden, weights, targets, shared):
    """The loss with everything computed at every position."""
    losses = divergence(name, apply_head(head, hidden), targets, *shared)
    losses = jnp.where(weights != 0, losses, 0.0)
    return (losses * weights).sum(), losses


def lean(name, head, *arguments):
    return weighted_loss(NETWORK, head, functools.partial(divergence, name), *arguments)


@functools.partial(jax.jit, static_argnames="name")
def _both(name, scale, head, hidden, *others):
    def scaled(head, hidden, loss):
        total, losses = loss(name, head, hidden, *others)
        return scale * total, losses

    function = jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True)
    return function(head, hidden, lean), function(head, hidden, naive)


def both(name, arguments, scale=1.0):
    """(value, losses, gradients with respect to head and hidden) of both losses."""
    return jax.device_get(_both(name, scale, *arguments))


def assert_same(name, arguments, scale=1.0):
    ours, oracle = both(name, arguments, scale)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_value_and_gradients_of_every_divergence(name, share):
    assert_same(name, problem(0, 3, 13, 11, share), scale=-0.7)


@pytest.mark.parametrize(
    ("batch", "length", "vocab"),
    [(1, 1, 3), (1, 19, 17), (3, 5, 4), (2, 16, 9)],
    ids=["one token, one row", "one text", "few", "many"],
)
@pytest.mark.parametrize(("seed", "share"), [(0, 0.0), (1, 0.2), (2, 0.9), (3, 1.0)])
def test_any_shape(seed, batch, length, vocab, share):
    """Counts that the chunk does and does not divide, one row, none, a vocabulary of one token."""
    assert_same("kl-bwd", problem(seed, batch, length, vocab, share))


@pytest.mark.parametrize("size", [1, 5, 64])
def test_the_size_of_a_chunk_changes_nothing(monkeypatch, size):
    monkeypatch.setattr(rows, "chunk_size", lambda *_: size)
    _both.clear_cache()  # the cache does not know the size
    assert_same("kl-fwd", problem(1, 2, 9, 7, 0.6))
    _both.clear_cache()


def test_one_position():
    head, hidden, weights, targets, shared = problem(2, 3, 13, 11, 0.0)
    weights[1, 3] = 1.0
    assert_same("kl-bwd", (head, hidden, weights, targets, shared))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_are_finite_where_tokens_are_impossible(name):
    """A student that excludes a token, a teacher that excludes another: -1e6, not -inf."""
    arguments = problem(3, 3, 13, 11, 0.8)
    head, [teacher_head] = arguments[0], arguments[-1]
    head["bias"][0] = teacher_head["bias"][1] = NEG_INFINITY
    ours, oracle = both(name, arguments)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_the_factor_of_a_loss_in_bfloat16_is_not_rounded():
    """As of a mean over 3 tokens, to which bfloat16's 1/3 would add 0.2 %. Oracle: the sum's gradient, scaled
    in float32 and rounded once more."""
    head, hidden, weights, _, _ = problem(3, 2, 16, 9, 0.5)
    head, hidden = jax.device_put((head, hidden.astype(jnp.bfloat16)))

    def loss(hidden, factor):
        args = hidden, weights, np.zeros(weights.shape, np.int32)
        total, losses = weighted_loss(NETWORK, head, lambda logits, _: logits[:, 0], *args)
        own = selected_losses(NETWORK, head, lambda logits, _: logits[:, 0], *args)
        assert own.dtype == losses.dtype == total.dtype == jnp.float32
        return factor * total

    whole, third = (jax.jit(jax.grad(loss))(hidden, np.float32(x)) for x in (1, 1 / 3))
    expected = (whole.astype(np.float32) * np.float32(1 / 3)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(third, expected)


def test_the_gradient_of_a_bfloat16_head_is_added_up_in_float32(monkeypatch):
    """Oracle: the same head in float32. Rounding a chunk and the sum costs 0.4 % at most; rounding
    each of 128 sums cost 1 %."""
    monkeypatch.setattr(rows, "chunk_size", lambda *_: 4)
    head, hidden, weights, _, _ = jax.tree.map(np.float32, problem(7, 8, 64, 9, 1.0))
    low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), head)

    @jax.jit
    def gradient(head):
        def total(head):
            args = hidden, np.abs(weights), np.zeros(weights.shape, np.int32)
            normaliser = functools.partial(jax.nn.logsumexp, axis=-1)
            return weighted_loss(NETWORK, head, lambda x, _: normaliser(x), *args)[0]

        return jax.grad(total)(head)

    found, oracle = gradient(low), gradient(jax.tree.map(lambda x: x.astype(jnp.float32), low))
    assert found["bias"].dtype == jnp.bfloat16
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(oracle), strict=True):
        off = np.linalg.norm(np.float32(one) - np.float32(other)) / np.linalg.norm(
            np.float32(other)
        )
        assert off < 0.004


def test_selected_losses_are_those_of_the_weighted_loss():
    loss_fn = functools.partial(divergence, "kl-bwd")

    @jax.jit
    def losses(head, hidden, weights, targets, shared):
        total, weighted = lean("kl-bwd", head, hidden, weights, targets, shared)
        selected = weights != 0
        return (
            total,
            weighted,
            selected_losses(NETWORK, head, loss_fn, hidden, selected, targets, shared),
        )

    arguments = problem(4, 2, 7, 9, 0.5)
    total, weighted, own = losses(*arguments)
    np.testing.assert_allclose(own, weighted, rtol=1e-12)
    np.testing.assert_allclose(total, (weighted * arguments[2]).sum(), rtol=1e-12)


def test_a_chunk_is_cut_for_the_widest_array_of_a_row(monkeypatch):
    """A position of a mixture has logits of each of its values. Oracle: their number by hand.

    Counting only the vocabulary made a chunk too large, by a factor of the number of values.
    """
    values, vocab, asked = 3, 11, []

    def chunk_size(count, columns, parts):
        del count, parts
        asked.append(columns)
        return 4

    monkeypatch.setattr(rows, "chunk_size", chunk_size)
    head, hidden, weights, targets, _ = problem(6, 2, 5, vocab, 0.5)

    def over_values(logits, targets):
        return jax.nn.logsumexp(logits, axis=(1, 2)) + targets.sum(axis=-1)

    @jax.jit
    def both_ways(head, hidden, weights, targets):
        def total(head, hidden):
            return weighted_loss(NETWORK, head, over_values, hidden, weights, targets)[0]

        value, _ = jax.value_and_grad(total)(head, hidden)
        selected = weights != 0
        return value, selected_losses(NETWORK, head, over_values, hidden, selected, targets)

    wide = np.stack([hidden] * values, axis=2)
    value, losses = both_ways(head, wide, weights, targets)
    assert asked == [values * vocab] * 2
    np.testing.assert_allclose(value, (weights * losses).sum())


def test_nothing_of_the_size_of_batch_times_length_times_vocab_exists():
    """Bytes of temporaries of the compiled gradient, against one such array."""
    batch, length, vocab = 4, 512, 4096
    with jax.enable_x64(False):
        arguments = jax.tree.map(
            lambda x: x.astype(np.float32), problem(5, batch, length, vocab, 0.5)
        )

        def temporaries(loss):
            function = jax.jit(jax.grad(lambda *a: loss("kl-bwd", *a)[0], (0, 1)))
            return function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

        one = 4 * batch * length * vocab
        assert temporaries(naive) > 2 * one, "the oracle does hold such arrays"
        assert temporaries(lean) < 1.5 * one
