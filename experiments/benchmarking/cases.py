"""The cases of the benchmark: each suite in two variants, built once and then repeated.

`lean` is the path that users run, `naive` the twin in `experiments.benchmarking.naive`, `matmul` the
yardstick; `coupled` is the same step, or generation, of a student that sees noise. Every repetition of a case
does the same work: same parameters, tokens and keys; lean and naive mask the same tokens. Each step masks as
many tokens as its loss does on average, as nearly as a choice among `NOISE_SEEDS` keys allows.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarking import naive
from experiments.benchmarking.inputs import random_params, random_tokens, timed
from experiments.benchmarking.memory import check_memory, memory_of
from experiments.settings import RunConfig, run_config
from sdtt_jax import objectives
from sdtt_jax.causal.nll import causal_nll
from sdtt_jax.causal.sampler import generate
from sdtt_jax.diffusion import nelbo
from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.diffusion.decoders.base import Helper
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, SamplerState, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation import loss as distillation
from sdtt_jax.distillation.coupled import CoupledDistillConfig, states_along
from sdtt_jax.distillation.rounds import Student, next_round
from sdtt_jax.distillation.trajectories import Teacher, Trajectories, make_trajectories, noise_of
from sdtt_jax.keys import purpose_key, seed_key
from sdtt_jax.networks import CausalConfig, CausalNetwork, Denoiser, DenoiserConfig
from sdtt_jax.networks.config import TransformerConfig, of_same_size
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.networks.gpt2 import GPT2Config, GPT2Network
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.parallel.placement import place_batch, replicated
from sdtt_jax.training.state import StateSpec
from sdtt_jax.training.step import Loss, LossFn, give_back_memory, make_train_step
from sdtt_jax.typing import Params

# The measurements of one repetition: "seconds", and what the suite counts.
Repetition = dict[str, float]
Log = Callable[[str], None]

SUITES = ("train", "teacher", "sample", "judge", "data", "demo", "race")
VARIANTS = ("lean", "naive")
MATMUL, COUPLED = "matmul", "coupled"
# The entrants of the race: the student at several numbers of calls, and the causal model.
STUDENT, CAUSAL = "student", "causal"
NOISE_SEEDS = 64
MATMUL_PAIRS = 8
TRAJECTORY_CALLS = 4


@dataclasses.dataclass(frozen=True)
class Job:
    """What one worker process measures; JSON-ready by `dataclasses.asdict`."""

    suite: str  # a key of `CASES`, or "data"
    variant: str  # one of `VARIANTS`, `MATMUL` or `COUPLED`; in the race `STUDENT` or `CAUSAL`
    config: dict[str, Any]  # a `RunConfig` as a plain mapping
    vocab_size: int  # tokens of the vocabulary, MASK not among them
    batch_size: int  # sequences
    num_steps: int = 0  # sampling steps; 0 where there are none
    # The decoder of the suites "sample" and "race"; "" for the naive variant of "sample", which is plain code
    # for the grid.
    mode: str = SamplerConfig.mode
    helper: str = "denoiser"  # the helper of those decoders of the race that take either
    warm_up: bool = True  # run once, untimed, before the repetitions

    @property
    def name(self) -> str:
        """The name of the job within its row."""
        if self.variant != STUDENT:
            return self.variant
        who = self.variant if self.mode == SamplerConfig.mode else self.mode
        return f"{who}, {self.num_steps} calls"


class Case(NamedTuple):
    """A case that is ready to be repeated."""

    repeat: Callable[[], Repetition]  # runs once to the end
    # Measured while building: `compile_s`, and `memory`, that of the compiled program in GB.
    setup: dict[str, Any]
    # The compiled program; None where the work is not a single program.
    program: jax.stages.Compiled | None = None


def build(job: Job, log: Log) -> Case:
    """Compiles the job's work; `log` is called with each phase as it begins."""
    if job.suite not in CASES:
        raise ValueError(f"no case for suite {job.suite!r}")
    make = _matmul if job.variant == MATMUL else CASES[job.suite]
    return make(job, run_config(job.config), log)


def _training(job: Job, config: RunConfig, log: Log) -> Case:
    """A whole step: loss, gradients, optimizer, moving average; the state is donated."""
    distills = job.suite == "train"
    stage = config.distill.train if distills else config.teacher.train
    stage = dataclasses.replace(stage, batch_size=job.batch_size, microbatches=1)
    sizes, denoiser, diffusion = _network(job, config)
    more: dict[str, Any] = {}
    if job.variant == COUPLED:
        # Measured first: its parameters are freed before the step's are made, so the peak is the step's.
        log("a trajectory of the teacher")
        more["trajectory_call_s"] = _trajectory_call(job, config, diffusion)
    log("making parameters")
    loss = _counted(_loss(job, config, diffusion), distills)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    student = Student(random_params(denoiser, replicated(mesh)))
    tokens = place_batch(random_tokens(job.batch_size, sizes), mesh)
    batch: Any = tokens
    if job.variant == COUPLED:
        index = np.arange(job.batch_size, dtype=np.int32)
        batch = {"index": place_batch(index, mesh), "tokens": tokens}
    elif distills:
        student = next_round(config.distill, student, 1)
    key = average_key(job, config, diffusion, tokens)
    state = StateSpec(stage, mesh).from_params(**student._asdict())
    del student

    log("compiling")
    step = make_train_step(loss, stage)
    compiled, compile_s = timed(lambda s: step.lower(s, batch, key).compile(), state)
    give_back_memory()  # as training does

    def repeat() -> Repetition:
        nonlocal state
        # Keys are derived from the step: kept at step 0, every repetition masks the same tokens.
        first = jax.device_put(np.int32(0), replicated(mesh))
        (state, metrics), seconds = timed(compiled, state.replace(step=first), batch, key)
        return {
            "seconds": seconds,
            "masked": float(metrics["masked"]),
            "loss": float(metrics["loss"]),
        }

    setup = {"compile_s": compile_s, "memory": memory_of(compiled)}
    return Case(repeat, setup | more, compiled)


def _trajectory_call(job: Job, config: RunConfig, student: MaskedDiffusion) -> float:
    """Seconds of one teacher call while making the trajectories that a noise-coupled student learns."""
    _, denoiser, teacher = _network(dataclasses.replace(job, variant="lean"), config)
    params, keys = random_params(denoiser), jax.random.split(seed_key(0), job.batch_size)
    sampler = dataclasses.replace(config.coupled.trajectory(1), num_steps=TRAJECTORY_CALLS)

    @jax.jit
    def made(params: Params, keys: jax.Array) -> jax.Array:
        made_by, length = Teacher(teacher, params), config.data.length
        return make_trajectories(student, made_by, keys, length, sampler).tokens

    compiled = made.lower(params, keys).compile()
    seconds = [timed(compiled, params, keys)[1] for _ in range(2)]
    return seconds[1] / TRAJECTORY_CALLS


def _loss(job: Job, config: RunConfig, diffusion: MaskedDiffusion) -> LossFn:
    if job.variant == COUPLED:
        key = purpose_key(config.seed, "benchmark.coupled")
        stage, length = _coupled_stage(config), config.data.length
        return objectives.coupled_loss(diffusion, diffusion, stage, 1, key, length)
    losses = objectives if job.variant == "lean" else naive
    if job.suite == "teacher":
        return losses.teacher_loss(diffusion, config.teacher)
    return losses.distill_loss(diffusion, config.distill)


def _counted(loss_fn: LossFn, distills: bool) -> LossFn:
    """`loss_fn` with the metric `masked`, the number of masked tokens in the batch."""

    def loss(params: Params, context: Any, batch: jax.Array, key: jax.Array) -> Loss:
        result = loss_fn(params, context, batch, key)
        masked = result.weight
        if not distills and "masked_share" in result.metrics:
            masked = result.metrics["masked_share"] * batch.size
        return result._replace(metrics={"masked": masked})

    return loss


def average_key(
    job: Job, config: RunConfig, diffusion: MaskedDiffusion, tokens: jax.Array
) -> jax.Array:
    """A key of the stage with which the first step masks about as many tokens as a step does on average.

    That is half of the tokens, and more where a noise-coupled student is shown fully masked texts.
    """
    full_share = config.coupled.full_share if job.variant == COUPLED else 0.0
    average = full_share + (1.0 - full_share) / 2.0

    def masked(key: jax.Array) -> jax.Array:
        # The key that `make_train_step` hands to the loss at step 0, microbatch 0.
        key = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
        if job.variant == COUPLED:
            noise = noise_of(diffusion, jax.random.split(key, len(tokens)), tokens.shape[1])
            stage = _coupled_stage(config)
            x_t = states_along(diffusion, Trajectories(noise, tokens), key, stage, round=1).x_t
        elif job.suite == "train":
            _, x_t, _ = distillation.distillation_batch(diffusion, tokens, key, config.distill)
        else:
            _, _, x_t = nelbo.masked_batch(diffusion, tokens, key, config.teacher)
        return (x_t == diffusion.mask_id).mean()

    keys = jax.random.split(purpose_key(config.seed, "benchmark.noise"), NOISE_SEEDS)
    shares = jax.jit(lambda keys: jax.lax.map(masked, keys))(keys)
    return keys[int(jnp.abs(shares - average).argmin())]


def _coupled_stage(config: RunConfig) -> CoupledDistillConfig:
    # In hindsight, noise is stored with its texts and read. Here it is drawn, which takes next to no time.
    return dataclasses.replace(config.coupled, hindsight=False)


def _sampling(job: Job, config: RunConfig, log: Log) -> Case:
    """A whole generation from MASK alone."""
    log("making parameters")
    sizes, denoiser, diffusion = _network(job, config)
    params = random_params(denoiser)
    x_init = prior_sample(job.batch_size, sizes.length, sizes.mask_id)
    key = purpose_key(config.seed, "benchmark.sample")
    # A student that sees noise takes the tokens that the noise determines.
    temperature = 0.0 if job.variant == COUPLED else 1.0
    mode = job.mode or SamplerConfig.mode
    sampler = SamplerConfig(job.num_steps, mode=mode, temperature=temperature)

    write: Any = functools.partial(sample, diffusion, config=sampler)
    if not job.mode:
        write = functools.partial(naive.sample, diffusion, num_steps=job.num_steps)

    def count(result: tuple[SamplerState, None]) -> Repetition:
        left = int((result[0].x == sizes.mask_id).sum())
        assert left == 0, f"{left} tokens are still masked"
        return {"calls": float(result[0].nfe)}

    log("compiling")
    return _compiled(write, count, params, key, x_init)


def _judging(job: Job, config: RunConfig, log: Log) -> Case:
    """-log p of every token, as texts are scored: by the run's judge, or a GPT-2 of the denoiser's size."""
    log("making parameters")
    sizes = judge_sizes(job, config)
    network = (
        CausalNetwork(sizes)
        if isinstance(sizes, CausalConfig)
        else GPT2Network(of_same_size(GPT2Config, sizes))
    )
    params = random_params(network)
    tokens = jnp.asarray(random_tokens(job.batch_size, sizes))

    score = causal_nll if job.variant == "lean" else naive.causal_nll
    score = functools.partial(score, network, bos_id=job.vocab_size - 1)
    log("compiling")
    return _compiled(score, lambda nll: {"loss": float(nll.mean())}, params, tokens)


def judge_sizes(job: Job, config: RunConfig) -> TransformerConfig:
    """Sizes of the model that scores: those of the config's judge for "own_judge", else of its denoiser."""
    own = job.suite == "own_judge"
    return config.causal(job.vocab_size) if own else config.denoiser(job.vocab_size)


def _racing(job: Job, config: RunConfig, log: Log) -> Case:
    """A whole text, by the denoiser in `num_steps` calls or by a causal model with a key-value cache.

    Both keep their parameters in the dtype of products: a causal model reads all of them for every token.
    """
    log("making parameters")
    sizes, denoiser, diffusion = _network(job, config)
    network = CausalNetwork(of_same_size(CausalConfig, sizes))
    entrant = denoiser if job.variant == STUDENT else network
    dtype = jnp.dtype(sizes.numerics.products)
    params = random_params(entrant, dtype=dtype)
    helper, decoder = None, parse_mode(job.mode).decoder
    if job.variant == STUDENT and decoder.helper:
        helper = Helper(params, denoiser)
        if (job.helper if job.helper in decoder.helper else decoder.helper[0]) == "causal":
            helper = Helper(random_params(network, dtype=dtype), network, bos_id=0)
    key, batch = purpose_key(config.seed, "benchmark.race"), job.batch_size
    log("compiling")
    if job.variant == CAUSAL:
        write = functools.partial(generate, network, num_tokens=sizes.length)
        begin, calls = jnp.zeros((batch, 1), jnp.int32), float(sizes.length)
        return _compiled(write, lambda _: {"calls": calls}, params, key, begin)
    sampler = SamplerConfig(job.num_steps, mode=job.mode)
    return _compiled(
        functools.partial(sample, diffusion, config=sampler),
        lambda result: {"calls": float(result[0].nfe)},
        params,
        key,
        prior_sample(batch, sizes.length, sizes.mask_id),
        helper=helper,
    )


def _matmul(job: Job, config: RunConfig, log: Log) -> Case:
    """The MLP's two products, `[batch · length, embed]` by `[embed, mlp]` and back, in a loop."""
    log("compiling")
    sizes = config.denoiser(job.vocab_size)
    wide, dtype = map(jnp.dtype, sizes.numerics)
    rows, embed = job.batch_size * sizes.length, sizes.embed_dim
    inner = sizes.mlp_ratio * embed
    keys = jax.random.split(purpose_key(config.seed, "benchmark.matmul"), 3)
    x = jax.random.normal(keys[0], (rows, embed), dtype)
    # Scaled so that the numbers keep their size over the loop.
    up = jax.random.normal(keys[1], (embed, inner), dtype) * embed**-0.5
    down = jax.random.normal(keys[2], (inner, embed), dtype) * inner**-0.5

    @jax.jit
    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.matmul(x, kernel, preferred_element_type=wide).astype(dtype)

    def pairs() -> jax.Array:
        y = x
        for _ in range(MATMUL_PAIRS):
            y = product(product(y, up), down)
        return y

    _, seconds = timed(pairs)
    flops = MATMUL_PAIRS * 2 * 2 * rows * embed * inner

    def repeat() -> Repetition:
        # The best of three: the yardstick is what the machine can do.
        seconds = min(timed(pairs)[1] for _ in range(3))
        return {"seconds": seconds, "flops_per_s": flops / seconds}

    return Case(repeat, {"compile_s": seconds, "shapes": f"[{rows}, {embed}] @ [{embed}, {inner}]"})


# How the work of a suite is built; the data suite, which computes nothing on a device, builds its own.
CASES = {
    "train": _training,
    "teacher": _training,
    "sample": _sampling,
    "judge": _judging,
    "own_judge": _judging,
    "race": _racing,
}


def _compiled(
    function: Callable[..., Any], count: Callable[[Any], Repetition], *arguments: Any, **named: Any
) -> Case:
    """A case that runs `function`, compiled, on `arguments`; `count` turns its result into measurements."""
    compiled, compile_s = timed(lambda: jax.jit(function).lower(*arguments, **named).compile())
    check_memory(compiled)

    def repeat() -> Repetition:
        began = time.process_time()
        result, seconds = timed(functools.partial(compiled, **named), *arguments)
        # While other programs run, only the processor's time is comparable.
        return {"seconds": seconds, "cpu_s": time.process_time() - began} | count(result)

    return Case(repeat, {"compile_s": compile_s, "memory": memory_of(compiled)}, compiled)


def _network(job: Job, config: RunConfig) -> tuple[DenoiserConfig, Denoiser, MaskedDiffusion]:
    sizes = config.denoiser(job.vocab_size)
    denoiser = Denoiser(sizes)
    if job.variant == COUPLED:
        denoiser = CoupledDenoiser(config.seeing_denoiser(COUPLED, job.vocab_size))
    return sizes, denoiser, MaskedDiffusion(denoiser, make_schedule(config.schedule))
