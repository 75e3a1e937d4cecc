"""Measures what a causal model is worth to a denoiser: the bound on held-out text against training steps.

    python -m tools.adaptation --workdir=runs/adaptation

A small causal network of the Llama family is trained on the demo's text. A denoiser of the same sizes then
starts from it, or from fresh parameters; texts, keys, optimizer and steps are the same.
"""

import argparse
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments.configs.demo import adam, demo
from experiments.settings import config_dict
from experiments.stages.context import Run
from experiments.stages.runner import open_run, run_stages
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.nelbo import NelboConfig
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.keys import purpose_key, purpose_seed
from sdtt_jax.model.masked import Model
from sdtt_jax.networks.config import LlamaConfig, as_denoiser
from sdtt_jax.networks.llama import LlamaDenoiser, LlamaNetwork
from sdtt_jax.objectives import judge_loss, teacher_loss
from sdtt_jax.paths import as_path
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.loop import train
from sdtt_jax.training.state import StateSpec, TrainState
from sdtt_jax.training.step import LossFn, make_train_step

HELD_OUT, MASKINGS, BATCH = 256, 2, 32
SIZES: dict[str, Any] = {"num_layers": 2, "embed_dim": 64, "num_heads": 2, "tied_head": True}


def steps_of(
    run: Run, name: str, loss: LossFn, state: TrainState, config: TrainConfig
) -> TrainState:
    """The state after `config.num_steps` of a stage's stream of batches."""
    seed = purpose_seed(run.config.seed, f"adaptation.{name}")
    step = make_train_step(loss, dataclasses.replace(config, num_steps=1_000_000))
    batch_at = functools.partial(_batch, run, seed)
    return train(state, step, batch_at, purpose_key(run.config.seed, f"adaptation.{name}"), config)


def _batch(run: Run, seed: int, step: int) -> Any:
    return run.train_split.batch(seed, step, BATCH)


def curve(run: Run, denoiser: LlamaDenoiser, params: Any, marks: list[int]) -> dict[int, float]:
    """The bound in nats per token after each number of steps.

    Args:
      run: for its data.
      denoiser: the network.
      params: that it starts from, or None: fresh ones.
      marks: ascending numbers of steps.
    """
    diffusion = MaskedDiffusion(denoiser, make_schedule())
    loss = teacher_loss(diffusion, NelboConfig(weighting="even"))
    config = TrainConfig(num_steps=max(marks), batch_size=BATCH, optimizer=_optimizer())
    spec = StateSpec(config, run.mesh)
    fresh = functools.partial(denoiser.init, purpose_key(run.config.seed, "adaptation.init"))
    state = spec.init(fresh) if params is None else spec.from_params(params)
    texts, found = run.validation_split.batch(0, 0, HELD_OUT), {}
    for mark in marks:
        if mark:
            config = dataclasses.replace(config, num_steps=mark)
            state = steps_of(run, "denoiser", loss, state, config)
        model: Any = Model(
            params=state.params,
            tokenizer=run.tokenizer,
            facts={"path": "adaptation", "kind": "llama-denoiser"},
            denoiser=denoiser,  # type: ignore[arg-type]
            schedule=diffusion.schedule,
        )
        found[mark] = float(jnp.mean(model.score(texts, jax.random.key(1), MASKINGS)))
        start = "from scratch" if params is None else "adapted"
        run.log(f"{start}, {mark} steps: {found[mark]:.3f} nats per token")
    return found


def _optimizer() -> Any:
    return dataclasses.replace(adam(2e-3), schedule="constant")


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--causal_steps", type=int, default=300)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 20, 40, 80, 160])
    given = parser.parse_args()
    with open_run(config_dict(demo()), as_path(given.workdir)) as run:
        run_stages(run, ("data",))
        sizes = LlamaConfig(run.info.vocab_size, run.config.data.length, **SIZES)
        causal = LlamaNetwork(sizes)
        config = TrainConfig(given.causal_steps, batch_size=BATCH, optimizer=_optimizer())
        state = StateSpec(config, run.mesh).init(
            functools.partial(causal.init, purpose_key(run.config.seed, "adaptation.causal"))
        )
        state = steps_of(run, "causal", judge_loss(causal, run.tokenizer.bos_id), state, config)
        denoiser = LlamaDenoiser(as_denoiser(sizes, shift=True))
        starts = (denoiser.init_from(state.params), None)
        curves = [curve(run, denoiser, params, given.steps) for params in starts]
    print("| steps | adapted | from scratch |\n|---|---|---|")
    for mark in given.steps:
        print(f"| {mark} | {curves[0][mark]:.3f} | {curves[1][mark]:.3f} |")


if __name__ == "__main__":
    main()
