"""The rounds of noise-coupled distillation: their teachers, and the stored pools of trajectories."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.distillers import COUPLED
from experiments.settings import RunConfig
from experiments.stages.context import Run
from experiments.stages.job import Batches, Rounds, TrainingJob, averaged
from experiments.stages.workdir import has_begun, is_delivered
from sdtt_jax.checkpoints.digests import canonical_sha256, params_digest
from sdtt_jax.checkpoints.orbax import is_committed
from sdtt_jax.checkpoints.store import load_params, save_params
from sdtt_jax.config import differences, require, to_mapping
from sdtt_jax.data.loader import shuffled
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.distillation.trajectories import Teacher, make_trajectories
from sdtt_jax.errors import MismatchError
from sdtt_jax.evaluation.record import kept_batches
from sdtt_jax.keys import (
    DEFAULT_GENERATOR,
    numbered_keys,
    purpose_key,
    purpose_seed,
    unusual_generator,
)
from sdtt_jax.model.batches import batched
from sdtt_jax.networks.base import Network, abstract_params
from sdtt_jax.objectives import coupled_loss
from sdtt_jax.ops.noise import Noise
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.mesh import RULES, full_batch
from sdtt_jax.parallel.placement import place_rows, place_whole, replicated, tree_shardings, unbox
from sdtt_jax.paths import as_path, remove_tree
from sdtt_jax.training.state import StateSpec, TrainState
from sdtt_jax.training.step import make_train_step
from sdtt_jax.trees import flat_leaves, nested
from sdtt_jax.typing import Key, Params, Tree

# Trajectories that the teacher makes at once.
POOL_BATCH = 64
# Folder next to an incomplete pool, with a file for each batch.
PARTS = "pool.parts"


def stored_batch(rows: dict[str, Any], mesh: Mesh, seed: int, number: int, size: int) -> Tree:
    """Batch `number` of the epochs of a seed, on the mesh: the trajectories' indices and arrays.

    `rows` has "tokens", at which the trajectories end, `[trajectories, length]` int32; in hindsight, also the
    "noise" of these texts. Other noise is drawn again from the indices.
    """
    chosen = shuffled(len(rows["tokens"]), seed, number, size).astype(np.int32)

    def placed(stored: np.ndarray) -> jax.Array:
        return place_rows(lambda part: stored[chosen[part]], (size, *stored.shape[1:]), mesh)

    index = place_rows(lambda part: chosen[part], (size,), mesh)
    return {"index": index} | jax.tree.map(placed, rows)


def _fresh_batch(run: Run, seed: int, number: int, size: int) -> Tree:
    """The indices of the trajectories that a training step makes itself; in hindsight, with their texts."""

    def numbers(rows: slice) -> np.ndarray:
        return np.arange(number * size, (number + 1) * size, dtype=np.int32)[rows]

    batch = {"index": place_rows(numbers, (size,), run.mesh)}
    if run.config.coupled.hindsight:
        batch["tokens"] = run.texts(seed, number, size)
    return batch


def _describe(config: RunConfig, number: int) -> str:
    calls, k = config.coupled.calls_of(number), config.coupled.num_distill_calls
    if config.coupled.independent:
        texts = (
            "real texts" if config.coupled.hindsight else f"the teacher's texts of {calls} calls"
        )
        return f"the student learns {texts} at once, and sees noise that they do not depend on"
    if config.coupled.hindsight:
        return (
            f"the student sees the noise from which the teacher would write a text in {calls} calls, and "
            "learns the text at once"
        )
    ahead = f"{k} of them" if k else "all of them"
    return (
        f"the teacher makes {calls} calls; the student sees their noise and learns {ahead} at once"
    )


def _deliver(run: Run, number: int, state: TrainState) -> None:
    run.deliver(
        run.workdir.round(number, COUPLED),
        run.coupled,
        averaged(state),
        stage=COUPLED,
        round=number,
        num_calls=run.config.coupled.calls_of(number),
        num_distill_calls=run.config.coupled.num_distill_calls,
        hindsight=run.config.coupled.hindsight,
    )


def _round(run: Run, number: int) -> TrainingJob:
    config, train, length = run.config.coupled, run.config.coupled.train, run.config.data.length
    _, network = _teacher(run, number)
    own, teachers = run.diffusion_of(run.coupled), run.diffusion_of(network)
    loss = coupled_loss(own, teachers, config, number, _noise_key(run, number), length)
    teacher = teacher_params(run, number)
    batches = open_pool(run, number, teacher)
    spec, context = StateSpec(train, run.mesh), {}
    if config.soft_weight or not config.num_trajectories:
        context["teacher_params"] = unbox(abstract_params(network))
    abstract = spec.abstract(abstract_params(run.coupled), context)
    # A list, so that `start` can release the teacher before training; empty if a checkpoint is restored.
    begun = processes.agree(has_begun(run.workdir.round(number, COUPLED)))
    held = [] if begun else [teacher]

    def start() -> TrainState:
        params = held.pop() if held else teacher_params(run, number)
        student = params
        if number == 1:
            # Adds a noise network, which does not change the outputs yet.
            init_key = purpose_key(run.config.seed, "coupled.init")
            student = jax.jit(
                lambda params: run.coupled.init_from(params, init_key),
                out_shardings=tree_shardings(abstract_params(run.coupled), RULES, run.mesh),
            )(params)
        return spec.from_params(student, dict.fromkeys(context, params))

    step_fn = make_train_step(loss, train)
    return TrainingJob(run, COUPLED, number, train, step_fn, start, abstract, batches=batches)


def teacher_params(run: Run, number: int) -> Params:
    """The parameters of a round's teacher: the first teacher, or the student of the round before."""
    folder, network = _teacher(run, number)
    return run.delivered(folder, network, "distill")


def check_pool(run: Run) -> None:
    """Checks that the pool of another run is there, unless the round that reads it has delivered."""
    pool = run.config.coupled.pool
    require(
        not pool or is_delivered(run.workdir.round(1, COUPLED)) or as_path(pool).is_dir(),
        f"config.coupled.pool={pool} is not a stored pool; give DIR/coupled/01/pool of a run, or leave "
        "it empty to have one made.",
    )


def open_pool(run: Run, number: int, teacher: Params) -> Batches:
    """Reads the trajectories of a round, or makes and stores them.

    With `num_trajectories=0` none is stored, and each training step makes its own. Trajectories depend on
    the teacher, on the config's seed and, in hindsight, on the texts of the training split.

    Raises:
      MismatchError: the stored trajectories were made with another teacher, vocabulary, setting or generator
        of random numbers.
    """
    config = run.config.coupled
    own = run.workdir.round(number, COUPLED)
    given = number == 1 and config.pool != ""
    folder = as_path(config.pool) if given else own / "pool"
    # Trajectories are neither cooled nor guided, and the pools of earlier versions lack these fields.
    sampler = to_mapping(config.trajectory(number))
    del sampler["cooling"], sampler["guidance"]
    # Those pools name the config's grid, also where the mode has no use for one.
    sampler["time_grid"] = config.time_grid
    facts = {
        "teacher": params_digest(teacher),
        "tokenizer": run.tokenizer.digest,
        "length": run.config.data.length,
        "num_trajectories": config.num_trajectories,
        "sampler": sampler,
        "noise": run.coupled.noise_kind,
        "seed": run.config.seed,
        "round": number,
    }
    if config.hindsight:
        facts["texts"] = run.data_digest
    if config.independent:
        facts["independent"] = True
    if not config.num_trajectories:
        return Batches(functools.partial(_fresh_batch, run), facts)
    # Training draws the noise again, which under other flags of JAX's would not be that of the stored texts.
    # A checkpoint names the generator itself.
    drawn = facts | unusual_generator()
    if given or processes.agree(is_committed(folder)):
        stored, found = load_params(folder, replicated(run.mesh))
        if found != drawn:
            usual = {"random": DEFAULT_GENERATOR}
            raise MismatchError(
                f"{folder} holds trajectories of another teacher, tokenizer or setting; give another pool, "
                "or remove it to have it made again:\n  "
                + "\n  ".join(differences(usual | found, usual | drawn))
            )
        rows = jax.tree.map(processes.to_host, stored)
    else:
        parts = folder.with_name(PARTS)
        rows = _make(run, number, teacher, parts / canonical_sha256(drawn)[:12])
        save_params(folder, place_whole(rows, run.mesh), drawn)
        processes.on_first("Removing the parts of the pool", lambda: remove_tree(parts))
    if "noise" in rows:
        rows["noise"] = Noise(**rows["noise"])
    return Batches(functools.partial(stored_batch, rows, run.mesh), facts)


def _make(run: Run, number: int, params: Params, parts: Path) -> dict[str, Any]:
    """A pool's arrays as they are stored; batches found in `parts` are not made again."""
    config = run.config.coupled
    count, length = config.num_trajectories, run.config.data.length
    what = "texts in hindsight of" if config.hindsight else "trajectories of"
    run.log(f"  round {number}: {count:,} {what} {config.calls_of(number)} calls each")
    _, network = _teacher(run, number)
    student, teacher = run.diffusion_of(run.coupled), run.diffusion_of(network)
    key, sampler = _noise_key(run, number), config.trajectory(number)
    rows = {"index": np.arange(count, dtype=np.int32)}
    if config.hindsight:
        rows["tokens"] = run.train_split.batch(
            purpose_seed(run.config.seed, "coupled.texts"), 0, count
        )
    function = functools.partial(_made, student, teacher, sampler, length, config.independent, key)
    # A trajectory depends on its row alone, so that a large mesh may make more of them at once.
    size = full_batch(POOL_BATCH, run.mesh)
    if size != POOL_BATCH:
        parts = parts.with_name(f"{parts.name}-{size}")
    batches = batched(function, params, rows, size)

    def arrays_of(made: dict[str, Any]) -> dict[str, np.ndarray]:
        if config.hindsight:
            made["noise"] = jax.tree.map(np.float32, made["noise"])
        return flat_leaves(made)

    made = kept_batches(
        f"coupled, round {number}, pool",
        [parts / f"{index:06d}.npz" for index in range(len(batches))],
        batches,
        arrays_of,
        tokens=min(size, count) * length,
    )
    return nested(made)


@functools.partial(
    jax.jit, static_argnames=("student", "teacher", "config", "length", "independent")
)
def _made(
    student: MaskedDiffusion,
    teacher: MaskedDiffusion,
    config: SamplerConfig,
    length: int,
    independent: bool,
    key: Key,
    params: Params,
    batch: jax.Array,
    rows: dict[str, jax.Array],
) -> dict[str, Any]:
    """The stored arrays of some trajectories: their final tokens, and noise that no key can draw again."""
    del batch
    keys, texts = numbered_keys(key, rows["index"]), rows.get("tokens")
    noise, tokens = make_trajectories(
        student, Teacher(teacher, params), keys, length, config, texts, independent=independent
    )
    if texts is None:
        return {"tokens": tokens}
    stored = {name: numbers for name, numbers in vars(noise).items() if numbers is not None}
    return {"tokens": tokens, "noise": stored}


def _teacher(run: Run, number: int) -> tuple[Path, Network]:
    """Folder and network of a round's teacher: the first teacher, or the student of the round before."""
    if number == 1:
        return run.workdir.teacher, run.denoiser
    return run.workdir.round(number - 1, COUPLED), run.coupled


def _noise_key(run: Run, number: int) -> Key:
    return purpose_key(run.config.seed, "coupled.noise", number)


ROUNDS = Rounds(_round, _deliver, _describe)
