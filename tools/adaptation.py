"""Measures what a causal model is worth to a denoiser: the bound on held-out text against training steps.

    python -m tools.adaptation --workdir=runs/adaptation      needs the extra `smollm2` and its package

The network is SmolLM2's first blocks, adapted or from scratch; texts, keys, optimizer and steps are the same.
"""

import argparse
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments.configs.english import english
from experiments.settings import RunConfig, config_dict
from experiments.stages.context import Run
from experiments.stages.runner import open_run
from experiments.stages.training import training_job
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.masked import Model
from sdtt_jax.networks.kinds import kind_of
from sdtt_jax.networks.lora import LoraConfig
from sdtt_jax.paths import as_path
from sdtt_jax.training.loop import train
from sdtt_jax.training.state import StateSpec, TrainState

HELD_OUT, MASKINGS = 64, 2


def small(layers: int, length: int, steps: int) -> RunConfig:
    """`english` with all parameters of a few blocks trained, and all edges open from the start."""
    config = english()
    optimizer = dataclasses.replace(
        config.teacher.train.optimizer, learning_rate=5e-4, schedule="constant"
    )
    training = dataclasses.replace(config.teacher.train, num_steps=steps, optimizer=optimizer)
    teacher = dataclasses.replace(
        config.teacher,
        init_layers=layers,
        attention_annealing=0,
        lora=LoraConfig(),
        train=training,
    )
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, length=length),
        teacher=teacher,
        distill=dataclasses.replace(config.distill, lora=LoraConfig()),
    )


def curve(run: Run, adapted: bool, marks: list[int]) -> dict[int, float]:
    """The bound in nats per token after each number of steps.

    Args:
      run: with a published base.
      adapted: starts from it, or else from fresh parameters.
      marks: ascending numbers of steps.
    """
    job = training_job(run, "teacher")
    fresh = functools.partial(run.denoiser.init, purpose_key(run.config.seed, "adaptation.init"))
    state = job.start() if adapted else StateSpec(job.config, run.mesh).init(fresh)
    found = {}
    for mark in marks:
        if mark:
            config = dataclasses.replace(job.config, num_steps=mark)
            state = train(state, job.step_fn, job.batch_at, job.key, config)
        found[mark] = bound(run, state)
        name = "adapted" if adapted else "from scratch"
        run.log(f"{name}, {mark} steps: {found[mark]:.3f} nats per token")
    return found


def bound(run: Run, state: TrainState) -> float:
    """The NELBO of held-out text, the same texts and maskings every time."""
    model: Any = Model(
        params=state.params,
        tokenizer=run.tokenizer,
        facts={"path": "adaptation", "kind": kind_of(run.denoiser)},
        denoiser=run.denoiser,
        schedule=run.diffusion.schedule,
    )
    texts, key = run.validation_split.batch(0, 0, HELD_OUT), jax.random.key(1)
    return float(jnp.mean(model.score(texts, key, MASKINGS)))


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 20, 40, 80, 160])
    given = parser.parse_args()
    config = small(given.layers, given.length, max(given.steps))
    with open_run(config_dict(config), as_path(given.workdir)) as run:
        curves = [curve(run, adapted, given.steps) for adapted in (True, False)]
    print("| steps | adapted | from scratch |\n|---|---|---|")
    for mark in given.steps:
        print(f"| {mark} | {curves[0][mark]:.2f} | {curves[1][mark]:.2f} |")


if __name__ == "__main__":
    main()
