"""Writes text with a distilled model.

  python -m experiments.sample --checkpoint=runs/demo --num_steps=8 --num_samples=4
  python -m experiments.sample --checkpoint=runs/demo/rounds/02 --prompt="in the beginning" --num_steps=8
  python -m experiments.sample --checkpoint=runs/demo --infill="and god said [8] and there was [5]"
  python -m experiments.sample --checkpoint=runs/demo --prompt="in the" --prompt="let him" --num_samples=2
  python -m experiments.sample --checkpoint=runs/demo --num_steps=16 --num_samples=1 --watch

--checkpoint is a run (its last finished round), a round, a teacher, or a `final` folder. --prompt and
--infill are for all texts when given once, or one for each. --watch shows the text appear as it is denoised.
All devices share each batch. Several processes take the same command, and the first one writes.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import flags

from experiments.cli.app import join_processes, output_file, run_app
from experiments.cli.devices import chosen_mesh
from experiments.cli.watch import watch
from sdtt_jax.config import positive, require
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.batches import batch_rows
from sdtt_jax.interchange.load import load_denoiser
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.masked import Model
from sdtt_jax.model.prompts import ended
from sdtt_jax.parallel import processes

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A run, a round, a teacher or a final folder (local or gs://); a .safetensors file or its folder; or a "
    "repository of the hub, OWNER/NAME[@REVISION].",
)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 16, "Reverse steps, or network calls.")
_MODE = flags.DEFINE_string(
    "mode",
    "grid",
    "grid: steps on a grid of times. first-hitting: tokens in a random order, evenly over num_steps calls.",
)
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 4, "How many texts.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    32,
    "Texts at once, up to a multiple of the devices; part of what determines the draws.",
)
_PROMPT = flags.DEFINE_multi_string(
    "prompt", None, "Text to continue; once, or once for each text."
)
_INFILL = flags.DEFINE_multi_string(
    "infill", None, "Text with gaps, [12] for 12 tokens; once, or once for each text."
)
_STOP_AT_EOS = flags.DEFINE_bool("stop_at_eos", False, "Leave out what follows the end of a text.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Nucleus filtering; 1 is off.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Top-k filtering; 0 is off.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Divides the logits; 0 is greedy.")
_TIME_GRID = flags.DEFINE_string("time_grid", "uniform", "uniform or cosine.")
_DTYPE = flags.DEFINE_string(
    "compute_dtype", None, "float32 or bfloat16; as it was trained if not given."
)
_SEED = flags.DEFINE_integer("seed", 0, "Equal seeds give equal texts.")
_WATCH = flags.DEFINE_bool("watch", False, "Show each text appear, one after the other.")
_PAUSE = flags.DEFINE_float("pause", 0.15, "With --watch: seconds that a step is shown at least.")
_OUTPUT = flags.DEFINE_string("output", None, "Also write the texts to this file, as JSON lines.")
# Defined elsewhere; --help shows a module's own flags and those that it declares.
for _name in ("mesh", "distributed", "compilation_cache"):
    flags.declare_key_flag(_name)


def _texts(given: list[str] | None) -> str | list[str] | None:
    return given[0] if given is not None and len(given) == 1 else given


def main(argv: Sequence[str]) -> None:
    """Samples as the flags ask."""
    if len(argv) > 1:
        raise ConfigError(f"Unknown argument {argv[1]!r}; see --help.")
    require(_CHECKPOINT.value is not None, "--checkpoint is missing; see --help.")
    positive(**{"--num_samples": _NUM_SAMPLES.value, "--batch_size": _BATCH_SIZE.value})
    config = SamplerConfig(
        num_steps=_NUM_STEPS.value,
        mode=_MODE.value,
        time_grid=_TIME_GRID.value,
        temperature=_TEMPERATURE.value,
        top_k=_TOP_K.value,
        top_p=_TOP_P.value,
    )
    join_processes()
    file = processes.on_first("Looking at --output", lambda: output_file(_OUTPUT.value))
    require(
        not _WATCH.value or jax.process_count() == 1, "--watch is for one process; leave it out."
    )
    model = load_denoiser(str(_CHECKPOINT.value), compute_dtype=_DTYPE.value, mesh=chosen_mesh())
    tokenizer = model.text_tokenizer
    x_init = model.prior(_NUM_SAMPLES.value, _texts(_PROMPT.value), _texts(_INFILL.value))
    first = processes.is_first()
    if first:
        devices = "" if model.mesh is None else f" on {model.mesh.size} devices"
        print(
            f"{model.facts['path']}: {config.num_steps} steps, {model.config.length} tokens{devices}",
            file=sys.stderr,
        )
    with contextlib.ExitStack() as stack:
        output = None
        if file is not None:
            output = stack.enter_context(file.open("w", encoding="utf-8"))
        for texts, nfe, seconds in _batches(model, x_init, config):
            for row in texts:
                text = tokenizer.decode(row)
                if first and not _WATCH.value:
                    print(f"— {text}\n", flush=True)
                if output is not None:
                    record = {
                        "text": text,
                        "tokens": row.tolist(),
                        "num_steps": config.num_steps,
                        "nfe": nfe,
                        "seconds": seconds,
                    }
                    output.write(json.dumps(record) + "\n")


def _batches(
    model: Model, x_init: jax.Array, config: SamplerConfig
) -> Iterator[tuple[np.ndarray, int, float]]:
    """Texts `[batch, length]` int32 as the flags ask for them, network calls and seconds of each batch."""
    num_samples, tokenizer = len(x_init), model.text_tokenizer
    size = 1 if _WATCH.value else batch_rows(model.params, min(_BATCH_SIZE.value, num_samples))
    for start in range(0, num_samples, size):
        processes.stop_if_preempted()
        # The last batch is filled up with repeats, so that one size is compiled.
        rows = x_init[np.arange(start, start + size) % num_samples]
        key = jax.random.fold_in(purpose_key(_SEED.value, "sample"), start)
        began = time.monotonic()
        if _WATCH.value:
            states = model.states(key, rows, config)
            state = watch(states, tokenizer, config.num_steps, _PAUSE.value)
        else:
            state = model.denoise(key, rows, config)
        tokens = processes.to_host(jax.block_until_ready(state.x))
        seconds = time.monotonic() - began
        if _STOP_AT_EOS.value:
            given = np.asarray(rows) != model.mask_id
            tokens = ended(tokens, given, tokenizer.bos_id, tokenizer.eos_id)
        yield tokens[: num_samples - start], int(state.nfe), seconds


if __name__ == "__main__":
    run_app(main)
