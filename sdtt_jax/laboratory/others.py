"""Students of the other distillers on an enumerated world, measured by the law of their samples.

A student is a table of predictions, or a mixture one for each value of its latent, whose law needs no
sampling; students that see stochastic masks or noise are counted over samples. All have the same sizes and
start from a network that has copied the true denoiser, except the noise-coupled one of inverse distillation.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax import objectives
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
from sdtt_jax.laboratory.coupled import CoupledStudentConfig, train_coupled
from sdtt_jax.laboratory.record import Record, Truth
from sdtt_jax.laboratory.sampled import sampled_measures
from sdtt_jax.laboratory.student import (
    init_params,
    make_diffusion,
    network_of,
    predictions,
    table_params,
    train_in_turns,
    training,
)
from sdtt_jax.laboratory.world import Array, reveal_sums, sample_distribution
from sdtt_jax.networks.config import NoiseConfig
from sdtt_jax.ops.noise import LATENT, Noise, draw_noise, every_value, num_values
from sdtt_jax.training.step import Loss, LossFn
from sdtt_jax.typing import Key, Params, Tokens, Tree

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


@dataclasses.dataclass(frozen=True)
class StudentBench:
    """A world, and how students of it are made and measured; what several students need is computed once."""

    truth: Truth  # the world, enumerated
    calls: Sequence[int]  # numbers of network calls to measure at
    coupled: CoupledStudentConfig  # the coupled student and its training
    config: OthersConfig = dataclasses.field(default_factory=OthersConfig)  # the other distillers
    optima: Sequence[Array] = ()  # predictions of SDTT's rounds, the last of which is measured
    # The one of `matched.ENTROPIES` at which students are compared as well; None for none.
    matched: str | None = None

    @property
    def plain(self) -> MaskedDiffusion:
        """A student that sees no noise, without its parameters."""
        return make_diffusion(self.truth.world, self.config)

    @functools.cached_property
    def context(self) -> Tree:
        """What losses with a teacher read: the true denoiser."""
        return {"teacher_params": table_params(self.truth.teacher)}

    @functools.cached_property
    def one_shot(self) -> Params:
        """The parameters of the coupled student."""
        [params] = train_coupled(self.truth.world, self.coupled)
        return params

    @functools.cached_property
    def start(self) -> Params:
        """What the other students begin with: a network that has copied the true denoiser."""
        diffusion = self.plain
        # With dt = 1 the first teacher step reveals everything: every target is the teacher's at x_t itself.
        loss = objectives.distill_loss(diffusion, DistillConfig(divergence="kl-fwd"))
        context = self.context | {"dt": jnp.float32(1.0)}
        params = init_params(diffusion, purpose_key(self.coupled.seed, "exact-others-init"))
        steps = dataclasses.replace(self.config, num_steps=self.config.copy_steps)
        copying = dataclasses.replace(self, config=steps)
        return fit(copying, "copy of the teacher", loss, params, context, self.config.copy_rate)

    @functools.cached_property
    def mixture(self) -> list[Array]:
        """The mixture's tables. It learns trajectories to their end: one student for all numbers of calls."""
        noise, calls = NoiseConfig(LATENT, num_values=self.config.values), self.config.teacher_calls
        student = make_diffusion(self.truth.world, self.config, noise)
        key = purpose_key(self.coupled.seed, "exact-mixture-init")
        begin = jax.jit(network_of(student).init_from)(self.start, key)
        loss = objectives.mixture_loss(student, self.plain, MixtureConfig(calls, calls))
        params = fit(self, "mixture", loss, begin, self.context, self.config.learning_rate)
        return tables_of(self, student, params)


def fit(
    bench: StudentBench, title: str, loss: LossFn, params: Tree, context: Tree, rate: float
) -> Tree:
    """Trains for `bench.config.num_steps` steps, and returns the parameters.

    The loss is that of a batch of the chain's sequences; `rate` is Adam's at its peak, from which it falls to
    zero along a cosine. The title also seeds the random numbers.
    """
    world, size = bench.truth.world, bench.config.batch_size
    spec = training(bench.config.num_steps, size, name="adam", learning_rate=rate)
    shares = np.cumsum(bench.truth.chain).astype(np.float32)
    place = (world.vocab_size ** np.arange(world.length - 1, -1, -1)).astype(np.int32)

    def sequences(key: Key) -> Tokens:
        uniform = jax.random.uniform(key, (size,), jnp.float32)
        number = jnp.minimum(jnp.searchsorted(shares, uniform, side="right"), len(shares) - 1)
        return (number[:, None] // place % world.vocab_size).astype(jnp.int32)

    return train_in_turns(
        title,
        spec.from_params(params, context),
        loss,
        lambda key, _, steps: jax.vmap(lambda n: sequences(jax.random.fold_in(key, n)))(steps),
        purpose_key(bench.coupled.seed, f"exact-{title}"),
        spec.config,
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


def alpha_params(bench: StudentBench, calls: int) -> Params:
    """The teacher-free student."""
    config = bench.config
    loss = objectives.alpha_loss(bench.plain, AlphaConfig(config.alpha, calls))
    return fit(bench, f"alpha, {calls} calls", loss, bench.start, {}, config.learning_rate)


def mmd_params(bench: StudentBench, calls: int) -> Params:
    """The student that compares completions by the copied network's states."""
    student, config = bench.plain, bench.config
    features = functools.partial(network_of(student).layer_states, layer=config.layer)
    settings = MmdConfig(calls, layer=config.layer, gamma=config.gamma)
    loss = objectives.mmd_loss(student, features, settings)
    context = {"teacher_params": bench.start}
    return fit(bench, f"mmd, {calls} calls", loss, bench.start, context, config.slow_rate)


def idlm_params(bench: StudentBench, calls: int) -> Params:
    """The student of inverse distillation, which is trained together with a fake."""
    config = bench.config
    settings = IdlmConfig(calls, teacher_temperature=config.teacher_temperature)
    begin = {STUDENT: bench.start, FAKE: bench.start}
    title, loss = f"idlm, {calls} calls", objectives.idlm_loss(bench.plain, settings)
    return fit(bench, title, loss, begin, bench.context, config.slow_rate)[STUDENT]


def coupled_idlm_params(bench: StudentBench) -> Params:
    """The coupled student after inverse distillation, with a fake that sees no noise."""
    temperature = bench.config.teacher_temperature
    settings = CoupledIdlmConfig(bench.coupled.full_share, teacher_temperature=temperature)
    student = make_diffusion(bench.truth.world, bench.coupled, bench.coupled.noise)
    loss = objectives.coupled_idlm_loss(student, bench.plain, settings)
    begin = {STUDENT: bench.one_shot, FAKE: bench.start}
    return fit(bench, "coupled-idlm", loss, begin, bench.context, bench.config.slow_rate)[STUDENT]


def masks_measures(kind: str, coupled: bool, bench: StudentBench, name: str) -> dict[str, Record]:
    """Measures of a student with stochastic masks by number of calls: from samples, with `noise_information`.

    Multi-mask and infinite-mask diffusion show the network which of several masks, or what continuous noise,
    stands at each masked position. Here the student learns the true denoiser's trajectories in one of two
    ways. *Coupled*: it is shown the noise that the tokens are drawn with, or masks that reveal a part of it
    (which token has the largest Gumbel number). *Uncoupled*: it is shown noise drawn for itself. Given x_t,
    uncoupled noise is independent of the target, so the best prediction does not depend on it, and tokens
    that are revealed together are as independent as without noise.

    The kind is "masks", as many as the world has tokens, or "full", continuous noise, infinitely many.
    """
    world, config = bench.truth.world, bench.config
    noise = NoiseConfig(kind, num_values=world.vocab_size)
    student, teacher = make_diffusion(world, config, noise), bench.plain
    share, seed = bench.coupled.full_share, bench.coupled.seed
    distill = CoupledDistillConfig(world.length, full_share=share, independent=not coupled)

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
    key = purpose_key(seed, "exact-masks")
    begin = jax.jit(network_of(student).init_from)(bench.start, key)
    params = fit(bench, title, loss, begin, bench.context, config.learning_rate)
    found = sampled_measures(
        bench.truth, student, params, bench.calls, bench.coupled.draws, temperature=1.0
    )
    used = noise_information(student, params, world.length, purpose_key(seed, title))
    used_too = {"noise_information": float(used)}
    return {name: {n: measures | used_too for n, measures in found.items()}}


@functools.partial(jax.jit, static_argnames=("diffusion", "length"))
def noise_information(
    diffusion: MaskedDiffusion, params: Params, length: int, key: Key
) -> jax.Array:
    """Mean KL(prediction || mean prediction over noise) at the first call, nats per token: `[]` float32."""
    kind = diffusion.noise_kind
    assert kind is not None
    x = prior_sample(_NOISES, length, diffusion.mask_id)
    noise = draw_noise(key, x.shape, diffusion.mask_id, kind)
    hidden = diffusion.hidden(params, x, None, noise)
    logits = diffusion.denoiser.logits(params, hidden)[..., : diffusion.mask_id]
    log_probs = jax.nn.log_softmax(logits)
    mean = jax.nn.logsumexp(log_probs, axis=0) - np.log(_NOISES)
    return (jnp.exp(log_probs) * (log_probs - mean)).sum(axis=-1).mean()
