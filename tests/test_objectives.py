"""The losses that stages train with. Oracles: the bound, the causal cross-entropy, the distillation terms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sdtt_jax.causal.nll import causal_nll
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.nelbo import NelboConfig, denoising_terms, nelbo
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.alpha import AlphaConfig
from sdtt_jax.distillation.loss import distillation_terms
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.networks.base import abstract_params
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.config import CausalConfig
from sdtt_jax.networks.denoiser import Denoiser
from sdtt_jax.objectives import alpha_loss, distill_loss, judge_loss, teacher_loss
from sdtt_jax.ops.sequences import Sequences
from sdtt_jax.parallel.placement import unbox
from sdtt_jax.training.step import _mean_gradient
from tests.worlds import LENGTH, VOCAB, TableDenoiser, noisy_params, random_table, tiny_network

WORLD, TABLE = MaskedDiffusion(TableDenoiser(), make_schedule()), random_table(0)
X0, KEY = np.tile(np.int32([[2, 0, 1], [1, 1, 0]]), (8, 1)), jax.random.key(0)
EVEN = NelboConfig("even")


@jax.jit
def bounds(key):
    """The losses of the teacher with both weights, the bound, and its terms."""
    losses = [teacher_loss(WORLD, config)(TABLE, {}, X0, key) for config in (NelboConfig(), EVEN)]
    return *losses, nelbo(WORLD, TABLE, X0, key).mean(), denoising_terms(WORLD, TABLE, X0, key)


def test_the_teachers_loss_is_the_bound_per_token():
    found, _, expected, _ = bounds(KEY)
    assert float(found.weight) == X0.size
    assert float(found.total / found.weight) == pytest.approx(float(expected), rel=1e-6)
    assert 0 < float(found.metrics["masked_share"]) < 1


def test_even_weights_count_masked_tokens_alike_and_report_the_bound():
    _, found, expected, terms = bounds(KEY)
    assert float(found.weight) == int(terms.masked.sum())
    assert float(found.total) == pytest.approx(float(terms.nll.sum()), rel=1e-6)
    bound, tokens = found.metrics["nelbo"]
    assert float(bound / tokens) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("every", [1, 2])  # 2: the loss on texts of every second token
def test_the_judges_loss_is_the_cross_entropy_per_token(every):
    network = CausalNetwork(CausalConfig(VOCAB, LENGTH, num_layers=1, embed_dim=8, num_heads=2))

    @jax.jit
    def both(params):
        found = judge_loss(network, bos_id=2, every=every)(params, {}, X0, KEY)
        return found, causal_nll(network, params, X0[:, ::every], 2).mean()

    found, expected = both(noisy_params(network, 1))
    assert float(found.total / found.weight) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    "loss_of",
    [lambda model: teacher_loss(model, EVEN), lambda model: alpha_loss(model, AlphaConfig())],
)
def test_a_gradient_may_be_taken_of_a_loss_within_shard_map(loss_of):
    """Oracle: JAX's own check (check_vma, its default) that what devices share has one gradient for all."""
    sizes = tiny_network(time_conditioned=True).config
    network = Denoiser(dataclasses.replace(sizes, num_layers=1, compute_dtype="bf16_bf16_f32"))
    loss, params = loss_of(MaskedDiffusion(network, make_schedule())), abstract_params(network)
    mesh = jax.sharding.AbstractMesh((2,), ("data",), (jax.sharding.AxisType.Auto,))
    shared, split = PartitionSpec(), PartitionSpec("data")

    def total(params, x0):
        return jax.lax.psum(loss(params, {}, x0, KEY).total, "data")

    sharded = jax.shard_map(total, mesh=mesh, in_specs=(shared, split), out_specs=shared)
    assert jax.eval_shape(jax.grad(sharded), unbox(params), X0) == unbox(params)


def test_the_rounds_loss_reads_teacher_and_step_from_the_context():
    config, dt, teacher = DistillConfig(num_trajectories=2), jnp.float32(0.2), random_table(1)

    @jax.jit
    def both(key):
        context = {"teacher_params": teacher, "dt": dt, "round": jnp.int32(3)}
        found = distill_loss(WORLD, config)(TABLE, context, X0, key)
        return found, distillation_terms(WORLD, TABLE, teacher, X0, dt, key, config)

    found, (total, count) = both(KEY)
    assert (float(found.total), float(found.weight)) == (float(total), float(count))


@pytest.mark.parametrize(
    ("context", "name", "holds"),
    [
        ({"dt": 0.2, "round": 1}, "teacher_params", "dt, round"),
        (None, "teacher_params", "nothing"),
        ({"teacher_params": TABLE}, "dt", "teacher_params"),
    ],
)
def test_what_a_context_lacks_is_one_sentence(context, name, holds):
    loss = distill_loss(WORLD, DistillConfig())
    with pytest.raises(ConfigError, match=f"`{name}` from the context, which holds {holds}; "):
        loss(TABLE, context, X0, KEY)


@pytest.mark.parametrize(
    ("kind", "counted"),
    [("prompted", [[6, 9], [3, 6]]), ("padded", [[0, 3, 6, 9], [0, 3, 6]]), ("documents", None)],
)
def test_every_nth_token_is_learnt_as_what_it_is_in_the_whole_sequence(kind, counted):
    """Every third token, so that no BOS (3) and no EOS (4) is one of them. In documents each
    text's first one follows BOS. Oracle: places by hand, and `causal_nll` of the pieces.
    """
    rows = [[0, 1, 0, 1, 3, 0, 1, 0, 2, 2, 4], [0, 3, 1, 2, 2, 1, 0, 0, 4, 4, 4]]
    tokens = jnp.array(rows if kind != "documents" else [[0, 1, 4, 2, 1, 0, 2, 4, 1, 0, 1]])
    network = CausalNetwork(CausalConfig(5, 11, num_layers=1, embed_dim=8, num_heads=2))
    params = noisy_params(network, 1)
    loss = judge_loss(network, 3, Sequences(kind, 3, 4), every=3)
    if counted is not None:
        weight = jax.jit(lambda params: loss(params, {}, tokens, KEY).weight)(params)
        assert float(weight) == sum(map(len, counted))
        return

    @jax.jit
    def both(params):
        # Tokens 0, 3, 6 and 9 belong to three texts: 0; 3 and 6; 9.
        pieces = ([[0]], [[2, 2]], [[0]])
        expected = [causal_nll(network, params, jnp.array(piece), 3).sum() for piece in pieces]
        return loss(params, {}, tokens, KEY).total, sum(expected)

    found, expected = both(params)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_the_bound_is_a_mean_over_tokens_however_the_batch_is_divided():
    """Oracle: the bounds of the pieces, of one text each, summed and divided by the number of all tokens."""
    config = NelboConfig("even", antithetic=False)
    loss = teacher_loss(WORLD, config)

    @jax.jit
    def whole(key):
        return _mean_gradient(loss, TABLE, {}, X0, key, microbatches=len(X0))[2]["nelbo"]

    @jax.jit
    def piece(text, key):
        terms = denoising_terms(WORLD, TABLE, text, key, config)
        return (terms.nll * terms.weight[:, None]).sum()

    found = whole(KEY)
    total = sum(float(piece(X0[i][None], jax.random.fold_in(KEY, i))) for i in range(len(X0)))
    assert float(found) == pytest.approx(total / X0.size, rel=1e-5)
