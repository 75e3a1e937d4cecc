"""Writes text with a distilled model.

  python -m experiments.sample --checkpoint=runs/demo --num_steps=8 --num_samples=4
  python -m experiments.sample --checkpoint=runs/demo/rounds/02 --prompt="in the beginning" --num_steps=8
  python -m experiments.sample --checkpoint=runs/demo --infill="and god said [8] and there was [5]"
  python -m experiments.sample --checkpoint=runs/demo --prompt="in the" --prompt="let him" --num_samples=2
  python -m experiments.sample --checkpoint=runs/demo --num_steps=16 --num_samples=1 --watch

--checkpoint is a run (its last finished round), a round, a teacher, or a `final` folder. --prompt and
--infill are for all texts when given once, or one for each. --watch shows the text appear as it is denoised.
"""

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments.terminal import run_app
from experiments.watching import watch
from sdtt_jax.configs import require
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.interchange.loading import load_denoiser
from sdtt_jax.interchange.prompts import ended
from sdtt_jax.keys import at_step, purpose_key

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
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Texts at once.")
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


def _texts(given: list[str] | None) -> str | list[str] | None:
    return given[0] if given is not None and len(given) == 1 else given


def main(argv: Sequence[str]) -> None:
    """Samples as the flags ask."""
    if len(argv) > 1:
        raise ConfigError(f"Unknown argument {argv[1]!r}; see --help.")
    require(_CHECKPOINT.value is not None, "--checkpoint is missing; see --help.")
    require(_NUM_SAMPLES.value > 0, f"--num_samples must be positive, not {_NUM_SAMPLES.value}.")
    require(_BATCH_SIZE.value > 0, f"--batch_size must be positive, not {_BATCH_SIZE.value}.")
    config = SamplerConfig(
        num_steps=_NUM_STEPS.value,
        mode=_MODE.value,
        time_grid=_TIME_GRID.value,
        temperature=_TEMPERATURE.value,
        top_k=_TOP_K.value,
        top_p=_TOP_P.value,
    )
    model = load_denoiser(str(_CHECKPOINT.value), compute_dtype=_DTYPE.value)
    tokenizer = model.text_tokenizer
    x_init = model.prior(_NUM_SAMPLES.value, _texts(_PROMPT.value), _texts(_INFILL.value))
    size = 1 if _WATCH.value else min(_BATCH_SIZE.value, _NUM_SAMPLES.value)

    key = purpose_key(_SEED.value, "sample")
    print(
        f"{model.facts['path']}: {config.num_steps} steps, {model.config.length} tokens",
        file=sys.stderr,
    )
    with contextlib.ExitStack() as stack:
        output = None
        if _OUTPUT.value:
            output = stack.enter_context(Path(_OUTPUT.value).open("w", encoding="utf-8"))
        for start in range(0, _NUM_SAMPLES.value, size):
            # The last batch is filled up with repeats, so that one size is compiled.
            rows = np.arange(start, start + size) % _NUM_SAMPLES.value
            began = time.monotonic()
            if _WATCH.value:
                states = model.states(at_step(key, start), x_init[rows], config)
                state = watch(states, tokenizer, config.num_steps, _PAUSE.value)
            else:
                state = model.denoise(at_step(key, start), x_init[rows], config)
            tokens = np.asarray(jax.block_until_ready(state.x))
            seconds = time.monotonic() - began
            if _STOP_AT_EOS.value:
                given = np.asarray(x_init[rows]) != model.mask_id
                tokens = ended(tokens, given, tokenizer.bos_id, tokenizer.eos_id)
            for row in tokens[: _NUM_SAMPLES.value - start]:
                text = tokenizer.decode(row)
                if not _WATCH.value:
                    print(f"— {text}\n", flush=True)
                if output is not None:
                    record = {
                        "text": text,
                        "tokens": row.tolist(),
                        "num_steps": config.num_steps,
                        "nfe": int(state.nfe),
                        "seconds": seconds,
                    }
                    output.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    run_app(main)
