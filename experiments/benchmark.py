"""Compares this library's code (lean) with plain code for the same job (naive).

It measures time, memory, and the share of the machine's matmul rate that is reached.

  python -m experiments.benchmark --suite=train,sample --output=benchmark.json

The default is the paper's small model (12 layers × 768, 50,258 tokens of vocabulary, length 1024,
float32) at batch 1, which on two CPU cores needs some 16 GB and most of an hour. For less, add
--config.model.num_layers=2 --config.data.length=128 --num_steps=8 --repeats=3, or take any config
of experiments.run.

  train    a step of distillation: loss, gradients, optimizer, moving average
  teacher  a step of the teacher's training
  sample   a whole generation, for each of --num_steps (experiments.evaluate --suite=latency times a
           checkpoint, also with --early_exit or --neighbours)
  judge    -log p of every token of generated text under a GPT-2 of these sizes
  data     tokenising, packing and loading the config's corpus
  demo     the steps of launch/demo.sh at its batch sizes: two minutes. It is measured alone, by
           default with the demo's config. The cost per network call of a student that sees noise is
           shown next to SDTT's step and generation
  race     writing a text: the student in each of --num_steps calls with each decoder of --modes
           (whose helper is the student itself or a causal model) against a causal model of the same
           size with its key-value cache; a table for each of --race_dtypes and --race_batches. With
           float32, one text and --repeats=1 it takes four to five minutes on two cores. Results are
           saved to --output as they come; --nowarm_up leaves out the untimed first run, --limit_s
           ends a repetition that takes longer, and a program that does not fit in memory is skipped

Lean and naive code take turns, each in its own process; with them a bare matmul of the MLP's shapes
is measured, as the yardstick. For train and sample, --coupled also measures the time per network
call of a student that sees noise, as --config describes it (experiments/configs/owt_coupled.py). If
two models do not fit in memory, --nointerleave runs one after the other. Where only one process may
use the accelerator, --in_process runs everything in this one.
"""

import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.benchmarking.suites import BenchmarkPlan, benchmark, deaths, show
from experiments.cli.app import check_flags, output_file, run_app, stopwatch, wide_console
from experiments.cli.fields import define_flags, from_flags
from experiments.cli.overrides import define_config_file
from experiments.settings import check_overrides, run_config
from sdtt_jax.config import require
from sdtt_jax.data.corpora import find_corpus
from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.diffusion.decoders.serving import check_served
from sdtt_jax.errors import UserError
from sdtt_jax.formats import write_json
from sdtt_jax.networks import Denoiser
from sdtt_jax.networks.kinds import DENOISER

CONFIGS = Path(__file__).with_name("configs")

_CONFIG = define_config_file(
    text="A config file; default: experiments/configs/benchmark.py (demo.py for --suite=demo)."
)
_OUTPUT = flags.DEFINE_string("output", None, "Also write all results to this JSON file.")
define_flags(BenchmarkPlan)


def with_default_config(argv: Sequence[str]) -> list[str]:
    """`argv` with a default `--config=` if it has none: the demo's config for `--suite=demo` alone.

    A file as the flag's own default would be read when this module is imported, and a wrong
    `--config.field` would end in a traceback.
    """
    if any(argument.split("=")[0] in ("--config", "-config") for argument in argv):
        return list(argv)
    demo = re.search(r"-suite[= ]demo(\s|$)", " ".join(argv)) is not None
    return [argv[0], f"--config={CONFIGS / ('demo.py' if demo else 'benchmark.py')}", *argv[1:]]


def main(argv: Sequence[str]) -> None:
    """Measures what the flags ask for."""
    check_flags(argv)
    plan, config = from_flags(BenchmarkPlan), run_config(_CONFIG.value)
    require(
        config.network == DENOISER,
        f"config.network={config.network!r}: its naive twin is of {DENOISER!r} alone; leave it out.",
    )
    for suite, modes in (("race", plan.modes.split()), ("sample", [plan.mode, plan.against])):
        if suite not in plan.suite:
            continue
        network = Denoiser(config.denoiser(config.vocab_size))
        for steps, mode in itertools.product(plan.num_steps, filter(None, modes)):
            parsed = parse_mode(mode)
            check_served(parsed, network, steps, config.data.length)
            require(
                suite == "race" or not parsed.decoder.helper,
                f"mode={mode} needs another model, which --suite=sample does not have; take --suite=race "
                f"--modes={mode}.",
            )
            require(
                suite == "race" or not (plan.coupled and parsed.decoder.step and mode == plan.mode),
                f"mode={mode} makes calls without noise, but the student of --coupled sees noise; leave one "
                "of the two out.",
            )
    if "data" in plan.suite:
        find_corpus(config.data.corpus)
    if {"teacher", "demo"} & set(plan.suite):
        require(
            not config.teacher.importance,
            "The naive twin has no importance sampling of t; add --config.teacher.importance=False.",
        )
    output = output_file(_OUTPUT.value)

    def save(record: dict[str, Any]) -> None:
        if output is not None:
            write_json(output, record)

    record = benchmark(config, plan, stopwatch(), save)
    show(record, wide_console())
    if any(not name.endswith(": naive") for name in deaths(record)):
        raise UserError(
            "A variant died, so its row is incomplete; the cause is printed below the tables. Give it a "
            "smaller batch or model."
        )


if __name__ == "__main__":
    sys.argv = with_default_config(sys.argv)
    run_app(main, check_overrides, cache=False)
