"""Measures the gain from starting a denoiser from a causal model: held-out bounds by training steps.

    python -m tools.adaptation --workdir=runs/adaptation

A small causal network of the Llama family is trained on the demo's text. A denoiser of the same
sizes then starts from it, or from fresh parameters; texts, keys, optimizer and steps are the same.
To start from a published model, or from its first blocks, use

    python -m tools.adaptation --workdir=runs/blocks --init_from=smollm2 --init_layers=2 --length=16 \\
        --batch=8 --learning_rate=5e-4 --held_out=64 --steps 0 10 20 40 80
"""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from experiments.cli.app import run_script
from experiments.configs.demo import adam, demo
from experiments.configs.english import english
from experiments.settings import RunConfig, config_dict
from experiments.stages.context import Run
from experiments.stages.runner import open_run, run_stages
from sdtt_jax.config import changed
from sdtt_jax.data import open_split
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.nelbo import NelboConfig
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.keys import purpose_key, purpose_seed, seed_key
from sdtt_jax.markdown import table
from sdtt_jax.model.masked import Model
from sdtt_jax.networks.config import LlamaConfig, as_denoiser
from sdtt_jax.networks.kinds import kind_of, network_of
from sdtt_jax.networks.llama import LlamaNetwork
from sdtt_jax.networks.lora import LoraConfig
from sdtt_jax.objectives import judge_loss, teacher_loss
from sdtt_jax.paths import as_path
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.loop import train
from sdtt_jax.training.state import StateSpec, TrainState
from sdtt_jax.training.step import LossFn, make_train_step

MASKINGS = 2
SIZES: dict[str, Any] = {"num_layers": 2, "embed_dim": 64, "num_heads": 2, "tied_head": True}


def steps_of(
    run: Run, name: str, loss: LossFn, state: TrainState, config: TrainConfig
) -> TrainState:
    """Trains to `config.num_steps` on the stream of batches called `name`; returns the state."""
    seed = purpose_seed(run.config.seed, f"adaptation.{name}")
    step = make_train_step(loss, changed(config, num_steps=1_000_000))

    def batch_at(number: int) -> Any:
        return run.train_split.batch(seed, number, config.batch_size)

    return train(state, step, batch_at, purpose_key(run.config.seed, f"adaptation.{name}"), config)


def curve(run: Run, denoiser: Any, params: Any, marks: list[int], texts: Any) -> dict[int, float]:
    """The bound in nats per token of held-out `texts: [batch, length]` int32, after each number of steps.

    The network starts from `params`, or from fresh ones if None, and is trained as the run's teacher is;
    `marks` are the numbers of steps, ascending.
    """
    diffusion = MaskedDiffusion(denoiser, make_schedule())
    loss = teacher_loss(diffusion, NelboConfig(weighting="even"))
    spec = StateSpec(run.config.teacher.train, run.mesh)
    fresh = functools.partial(denoiser.init, purpose_key(run.config.seed, "adaptation.init"))
    state = spec.init(fresh) if params is None else spec.from_params(params)
    found = {}
    for mark in marks:
        if mark:
            config = changed(run.config.teacher.train, num_steps=mark)
            state = steps_of(run, "denoiser", loss, state, config)
        model = Model(
            params=state.params,
            tokenizer=run.tokenizer,
            facts={"path": "adaptation", "kind": kind_of(denoiser)},
            denoiser=denoiser,
            schedule=diffusion.schedule,
        )
        found[mark] = float(jnp.mean(model.score(texts, seed_key(1), MASKINGS)))
        start = "from scratch" if params is None else "adapted"
        run.log(f"{start}, {mark} steps: {found[mark]:.3f} nats per token")
    return found


def settings(given: argparse.Namespace) -> RunConfig:
    """The run whose data, network and training are used."""
    optimizer = changed(adam(given.learning_rate), schedule="constant")
    train = TrainConfig(max(given.steps), batch_size=given.batch, optimizer=optimizer)
    config = demo()
    if given.init_from:
        config = english()
        named = {"init_from": given.init_from, "init_layers": given.init_layers}
        # `curve` opens all attention at once.
        config = changed(config, teacher={"lora": LoraConfig(), "attention_annealing": 0, **named})
    return changed(config, data={"length": given.length}, teacher={"train": train})


def small_start(run: Run, num_steps: int) -> tuple[Any, Any]:
    """A denoiser, with parameters of a causal network of its sizes after `num_steps` steps."""
    sizes = LlamaConfig(run.info.vocab_size, run.config.data.length, **SIZES)
    causal = LlamaNetwork(sizes)
    config = changed(run.config.teacher.train, num_steps=num_steps)
    init = functools.partial(causal.init, purpose_key(run.config.seed, "adaptation.causal"))
    state = StateSpec(config, run.mesh).init(init)
    state = steps_of(run, "causal", judge_loss(causal, run.tokenizer.bos_id), state, config)
    denoiser = network_of(as_denoiser(sizes, shift=True))
    return denoiser, denoiser.init_from(state.params)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The values of the flags, of the command line if `arguments` is None."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True)
    default = "default: %(default)r"
    parser.add_argument("--causal_steps", type=int, default=300, help=default)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 20, 40, 80, 160], help=default)
    parser.add_argument("--init_from", default="", help=default)
    parser.add_argument("--init_layers", type=int, default=0, help=default)
    parser.add_argument("--length", type=int, default=64, help=default)
    parser.add_argument("--batch", type=int, default=32, help=default)
    parser.add_argument("--learning_rate", type=float, default=2e-3, help=default)
    parser.add_argument("--held_out", type=int, default=256, help=default)
    return parser.parse_args(arguments)


def main() -> None:
    """Prints a Markdown table."""
    given = parsed()
    with open_run(config_dict(settings(given)), as_path(given.workdir)) as run:
        run_stages(run, ("data",))
        texts = open_split(run.workdir.local.data, "validation").batch(0, 0, given.held_out)
        denoiser, start = (
            (run.denoiser, run.base_params())
            if given.init_from
            else small_start(run, given.causal_steps)
        )
        curves = [curve(run, denoiser, params, given.steps, texts) for params in (start, None)]
    rows = ((mark, *(f"{found[mark]:.3f}" for found in curves)) for mark in given.steps)
    print(table(["steps", "adapted", "from scratch"], rows))


if __name__ == "__main__":
    run_script(lambda _: main())
