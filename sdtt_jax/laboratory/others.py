"""Students of the other distillers on an enumerated world, measured by the law of their samples.

A student is a table of predictions, or a mixture one for each value of its latent, whose law needs no
sampling; students that see stochastic masks or noise are counted over samples. All have the same sizes and
start from a network that has copied the true denoiser, except the noise-coupled one of inverse distillation.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import positive, require, whole, within
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import prior_sample
from sdtt_jax.distillation.alpha import AlphaConfig
from sdtt_jax.distillation.coupled import CoupledDistillConfig, coupled_terms
from sdtt_jax.distillation.coupled_idlm import CoupledIdlmConfig
from sdtt_jax.distillation.idlm import FAKE, STUDENT, IdlmConfig
from sdtt_jax.distillation.mixture import MixtureConfig
from sdtt_jax.distillation.mmd import MmdConfig
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.distillation.trajectories import Teacher, make_trajectories
from sdtt_jax.keys import purpose_key
from sdtt_jax.laboratory.coupled import CoupledStudentConfig, make_coupled_diffusion
from sdtt_jax.laboratory.record import Record, Truth
from sdtt_jax.laboratory.sampled import sampled_measures
from sdtt_jax.laboratory.student import (
    StudentConfig,
    init_params,
    make_diffusion,
    network_of,
    predictions,
    table_params,
    training,
)
from sdtt_jax.laboratory.turns import train_in_turns
from sdtt_jax.laboratory.world import (
    Array,
    reveal_sums,
    sample_distribution,
)
from sdtt_jax.networks.config import NoiseConfig
from sdtt_jax.objectives import (
    alpha_loss,
    coupled_idlm_loss,
    distill_loss,
    idlm_loss,
    mixture_loss,
    mmd_loss,
)
from sdtt_jax.ops.noise import LATENT, Noise, draw_noise, every_value, num_values
from sdtt_jax.training.step import Loss, LossFn, make_train_step
from sdtt_jax.typing import Key, Params, Tokens, Tree

# The tables, from `tables_of`, of the student for each number of calls.
Students = dict[int, list[Array]]

_NOISES = 1024
_every_value = jax.jit(every_value, static_argnums=(0, 1, 2))


@dataclasses.dataclass(frozen=True)
class OthersConfig:
    """Settings of the other distillers, with defaults for the built-in world."""

    # num_layers, embed_dim, num_heads, batch_size: of each student.
    num_layers: int = 2
    embed_dim: int = 32
    num_heads: int = 2
    batch_size: int = 128
    # Of each student; if the loss depends on the number of calls, one is trained for each number.
    num_steps: int = 1000
    copy_steps: int = 1000  # steps that copy the true denoiser first
    # copy_rate, learning_rate: Adam's peak rates.
    copy_rate: float = 3e-3
    learning_rate: float = 1e-3
    alpha: float = 0.5  # of the teacher-free loss
    values: int = 4  # of the mixture
    teacher_calls: int = 24  # calls of the trajectories that the mixture learns
    # layer, gamma: of the discrepancy, which compares states of the copied network.
    layer: int = 2
    gamma: float = 1e-2
    slow_rate: float = 1e-4  # Adam's peak rate for the discrepancy and inverse distillation
    teacher_temperature: float = IdlmConfig.teacher_temperature  # of inverse distillation

    def __post_init__(self) -> None:
        whole(1, self, "num_layers", "embed_dim", "num_heads", "batch_size")
        whole(1, self, "num_steps", "copy_steps", "layer")
        whole(2, self, "values", "teacher_calls")
        positive(self, "copy_rate", "learning_rate", "gamma", "slow_rate", "teacher_temperature")
        within("[0, 1]", self, "alpha")
        require(
            self.layer <= self.num_layers,
            f"layer={self.layer} does not exist: num_layers={self.num_layers}.",
        )


class StudentBench(NamedTuple):
    """What all students share."""

    truth: Truth  # the world, enumerated
    calls: Sequence[int]  # numbers of network calls to measure at
    sizes: CoupledStudentConfig  # of network and batch, and the seed
    config: OthersConfig  # settings of the distillers
    start: Callable[[], Params]  # returns the parameters that they begin with, made once


def make_bench(
    truth: Truth,
    calls: Sequence[int],
    sizes: CoupledStudentConfig,
    config: OthersConfig,
) -> StudentBench:
    """A bench whose start is a network that has copied the true denoiser.

    Of `sizes`, only the seed, the number of samples and the share of fully masked states are used.
    """
    sizes = dataclasses.replace(
        sizes,
        num_layers=config.num_layers,
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        batch_size=config.batch_size,
    )

    @functools.cache
    def start() -> Params:
        diffusion = plain_student(truth, sizes)
        # With dt = 1 the first teacher step reveals everything: every target is the teacher's at x_t itself.
        loss = distill_loss(diffusion, DistillConfig(divergence="kl-fwd"))
        context = {"teacher_params": table_params(truth.teacher), "dt": jnp.float32(1.0)}
        params = init_params(diffusion, purpose_key(sizes.seed, "exact-others-init"))
        steps = dataclasses.replace(config, num_steps=config.copy_steps)
        copying = StudentBench(truth, calls, sizes, steps, lambda: params)
        return fit(copying, "copy of the teacher", loss, params, context, config.copy_rate)

    return StudentBench(truth, calls, sizes, config, start)


def plain_student(truth: Truth, sizes: CoupledStudentConfig) -> MaskedDiffusion:
    """A student that sees no noise."""
    config = StudentConfig(sizes.num_layers, sizes.embed_dim, sizes.num_heads)
    return make_diffusion(truth.world, config)


def fit(
    bench: StudentBench, title: str, loss: LossFn, params: Tree, context: Tree, rate: float
) -> Tree:
    """Trains for `bench.config.num_steps` steps, and returns the parameters.

    Args:
      bench: world, batch, steps and seed.
      title: names the training in the progress shown, and seeds its random numbers.
      loss: the loss on a batch of the chain's sequences.
      params, context: what training begins with; the loss reads the context, which is not trained.
      rate: Adam's peak rate, decayed to zero along a cosine.
    """
    world, size = bench.truth.world, bench.sizes.batch_size
    settings, spec = training(bench.config.num_steps, size, name="adam", learning_rate=rate)
    shares = np.cumsum(bench.truth.chain).astype(np.float32)
    place = (world.vocab_size ** np.arange(world.length - 1, -1, -1)).astype(np.int32)

    def sequences(key: Key) -> Tokens:
        uniform = jax.random.uniform(key, (settings.batch_size,), jnp.float32)
        number = jnp.minimum(jnp.searchsorted(shares, uniform, side="right"), len(shares) - 1)
        return (number[:, None] // place % world.vocab_size).astype(jnp.int32)

    return train_in_turns(
        title,
        spec.from_params(params, context),
        make_train_step(loss, settings),
        lambda key, _, steps: jax.vmap(lambda n: sequences(jax.random.fold_in(key, n)))(steps),
        purpose_key(bench.sizes.seed, f"exact-{title}"),
        settings,
        world.length,
    ).params


def tables_of(bench: StudentBench, diffusion: MaskedDiffusion, params: Params) -> list[Array]:
    """A student's predictions `[states, L, V]`: one table, or one for each value of a mixture."""
    world, kind = bench.truth.world, diffusion.noise_kind
    seen: list[Noise | None] = [None]
    if kind is not None:
        every = jax.device_get(_every_value(kind, 1, world.length))
        seen = [jax.tree.map(lambda x, i=i: x[i], every) for i in range(num_values(kind))]
    return [predictions(diffusion, params, world, noise) for noise in seen]


def law_of(tables: Sequence[Array], calls: int) -> Array:
    """The exact law of a student's samples, `[V^L]`, from `tables_of`: the mean over a mixture's values."""
    return np.mean([sample_distribution(reveal_sums(table), calls) for table in tables], axis=0)


def alpha_students(bench: StudentBench) -> Students:
    """The teacher-free student, one for each number of calls."""
    student, config = plain_student(bench.truth, bench.sizes), bench.config

    def trained(calls: int) -> Params:
        loss = alpha_loss(student, AlphaConfig(config.alpha, calls))
        return fit(bench, f"alpha, {calls} calls", loss, bench.start(), {}, config.learning_rate)

    return _by_calls(bench, student, trained)


def mixture_students(bench: StudentBench) -> Students:
    """The mixture, which learns trajectories to their end: one student for all numbers of calls."""
    world, config = bench.truth.world, bench.config
    latent = dataclasses.replace(bench.sizes, noise=NoiseConfig(LATENT, num_values=config.values))
    student, teacher = make_coupled_diffusion(world, latent), plain_student(bench.truth, latent)
    begin = jax.jit(network_of(student).init_from)(
        bench.start(), purpose_key(latent.seed, "exact-mixture-init")
    )
    calls = MixtureConfig(config.teacher_calls, config.teacher_calls)
    context = {"teacher_params": table_params(bench.truth.teacher)}
    loss = mixture_loss(student, teacher, calls)
    params = fit(bench, "mixture", loss, begin, context, config.learning_rate)
    return _by_calls(bench, student, lambda _calls: params)


def mmd_students(bench: StudentBench) -> Students:
    """Students that compare completions by the copied network's states, one for each number of calls."""
    student, config = plain_student(bench.truth, bench.sizes), bench.config
    features = functools.partial(network_of(student).layer_states, layer=config.layer)

    def trained(calls: int) -> Params:
        settings = MmdConfig(calls, layer=config.layer, gamma=config.gamma)
        loss = mmd_loss(student, features, settings)
        context = {"teacher_params": bench.start()}
        return fit(bench, f"mmd, {calls} calls", loss, bench.start(), context, config.slow_rate)

    return _by_calls(bench, student, trained)


def idlm_students(bench: StudentBench) -> Students:
    """Students of inverse distillation, each trained together with a fake, one for each number of calls."""
    student, config = plain_student(bench.truth, bench.sizes), bench.config
    context = {"teacher_params": table_params(bench.truth.teacher)}

    def trained(calls: int) -> Params:
        settings = IdlmConfig(calls, teacher_temperature=config.teacher_temperature)
        loss = idlm_loss(student, settings)
        begin = {STUDENT: bench.start(), FAKE: bench.start()}
        return fit(bench, f"idlm, {calls} calls", loss, begin, context, config.slow_rate)[STUDENT]

    return _by_calls(bench, student, trained)


def coupled_idlm_params(bench: StudentBench, student: MaskedDiffusion, params: Params) -> Params:
    """A noise-coupled student after inverse distillation: one for all numbers of calls.

    Args:
      bench: world, steps and rate; its network is the fake.
      student: the student, without its parameters.
      params: the parameters that it continues from.
    """
    temperature = bench.config.teacher_temperature
    settings = CoupledIdlmConfig(bench.sizes.full_share, teacher_temperature=temperature)
    loss = coupled_idlm_loss(student, plain_student(bench.truth, bench.sizes), settings)
    context = {"teacher_params": table_params(bench.truth.teacher)}
    begin = {STUDENT: params, FAKE: bench.start()}
    return fit(bench, "coupled-idlm", loss, begin, context, bench.config.slow_rate)[STUDENT]


def masks_measures(bench: StudentBench, kind: str, *, coupled: bool) -> Record:
    """Measures of a student with stochastic masks by number of calls: from samples, with `noise_information`.

    Multi-mask and infinite-mask diffusion show the network which of several masks, or what continuous noise,
    stands at each masked position. Here the student learns the true denoiser's trajectories in one of two
    ways. *Coupled*: it is shown the noise that the tokens are drawn with, or masks that reveal a part of it
    (which token has the largest Gumbel number). *Uncoupled*: it is shown noise drawn for itself. Given x_t,
    uncoupled noise is independent of the target, so the best prediction does not depend on it, and tokens
    that are revealed together are as independent as without noise.

    Args:
      bench: world, sizes and steps.
      kind: "masks", as many as the world has tokens; or "full", continuous noise, infinitely many.
      coupled: whether the teacher's draws depend on what is shown.
    """
    world, config = bench.truth.world, bench.config
    noise = NoiseConfig(kind, num_values=world.vocab_size)
    sizes = dataclasses.replace(bench.sizes, noise=noise)
    student, teacher = make_coupled_diffusion(world, sizes), plain_student(bench.truth, sizes)
    distill = CoupledDistillConfig(
        world.length, full_share=sizes.full_share, independent=not coupled
    )

    def loss(params: Tree, context: Tree, batch: Tokens, key: Key) -> Loss:
        key_drawn, key_states = jax.random.split(key)
        trajectories = make_trajectories(
            student,
            Teacher(teacher, context["teacher_params"]),
            jax.random.split(key_drawn, len(batch)),
            world.length,
            distill.trajectory(1),
            independent=distill.independent,
        )
        return Loss(*coupled_terms(student, params, trajectories, key_states, distill), {})

    title = f"{kind}, {'coupled' if coupled else 'uncoupled'}"
    key = purpose_key(sizes.seed, "exact-masks")
    begin = jax.jit(network_of(student).init_from)(bench.start(), key)
    context = {"teacher_params": table_params(bench.truth.teacher)}
    params = fit(bench, title, loss, begin, context, config.learning_rate)
    found = sampled_measures(
        bench.truth, student, params, bench.calls, sizes.draws, temperature=1.0
    )
    used = noise_information(student, params, world.length, purpose_key(sizes.seed, title))
    return {n: measures | {"noise_information": used} for n, measures in found.items()}


def noise_information(diffusion: MaskedDiffusion, params: Params, length: int, key: Key) -> float:
    """Mean KL(prediction || mean prediction over noise) at the first call, nats per token."""
    return float(_information(diffusion, params, length, key))


@functools.partial(jax.jit, static_argnames=("diffusion", "length"))
def _information(diffusion: MaskedDiffusion, params: Params, length: int, key: Key) -> jax.Array:
    kind = diffusion.noise_kind
    assert kind is not None
    x = prior_sample(_NOISES, length, diffusion.mask_id)
    noise = draw_noise(key, x.shape, diffusion.mask_id, kind)
    hidden = diffusion.hidden(params, x, None, noise)
    logits = diffusion.denoiser.logits(params, hidden)[..., : diffusion.mask_id]
    log_probs = jax.nn.log_softmax(logits)
    mean = jax.nn.logsumexp(log_probs, axis=0) - np.log(_NOISES)
    return (jnp.exp(log_probs) * (log_probs - mean)).sum(axis=-1).mean()


def _by_calls(
    bench: StudentBench, diffusion: MaskedDiffusion, trained: Callable[[int], Params]
) -> Students:
    return {n: tables_of(bench, diffusion, trained(n)) for n in bench.calls}
