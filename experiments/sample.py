"""Writes text with a distilled model.

  python -m experiments.sample --checkpoint=runs/demo --num_steps=8 --num_samples=4
  python -m experiments.sample --checkpoint=runs/demo/rounds/02 --prompt="in the beginning" --num_steps=8
  python -m experiments.sample --checkpoint=runs/demo --infill="and god said [8] and there was [5]"
  python -m experiments.sample --checkpoint=runs/demo --mode=first-hitting --num_steps=8

--checkpoint is a run (its last finished round), a round, a teacher, or a `final` folder.
"""

import contextlib
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.terminal import run_app
from sdtt_jax.configs import require
from sdtt_jax.data import Tokenizer
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample
from sdtt_jax.errors import ConfigError
from sdtt_jax.interchange.loading import load_denoiser
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
_PROMPT = flags.DEFINE_string("prompt", None, "Text to continue.")
_INFILL = flags.DEFINE_string("infill", None, "Text with gaps: [12] is a gap of 12 tokens.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Nucleus filtering; 1 is off.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Top-k filtering; 0 is off.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Divides the logits; 0 is greedy.")
_TIME_GRID = flags.DEFINE_string("time_grid", "uniform", "uniform or cosine.")
_SEED = flags.DEFINE_integer("seed", 0, "Equal seeds give equal texts.")
_OUTPUT = flags.DEFINE_string("output", None, "Also write the texts to this file, as JSON lines.")

GAP = re.compile(r"\[(\d+)\]")


def fixed_tokens(
    tokenizer: Tokenizer, length: int, prompt: str | None, infill: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """What is given: `(tokens, fixed)`, `[length]` int32 and bool.

    Args:
      tokenizer: of the model.
      length: tokens per sequence.
      prompt: stands at the start.
      infill: text with gaps `[n]` of n tokens each; what follows its end is free.

    Raises:
      ConfigError: both are given, or they are longer than the model's sequences.
    """
    require(prompt is None or infill is None, "Give --prompt or --infill, not both.")
    tokens, fixed = np.zeros(length, np.int32), np.zeros(length, bool)
    parts = GAP.split(infill) if infill is not None else [prompt or ""]
    position = 0
    for index, part in enumerate(parts):
        gap = index % 2 == 1
        ids = np.zeros(int(part), np.int32) if gap else tokenizer.encode(part)
        name = "prompt" if infill is None else "infill"
        require(
            position + len(ids) <= length,
            f"--{name} is longer than the model's {length} tokens; shorten it.",
        )
        tokens[position : position + len(ids)] = ids
        fixed[position : position + len(ids)] = not gap
        position += len(ids)
    return tokens, fixed


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
    model = load_denoiser(str(_CHECKPOINT.value))
    length, mask_id = model.config.length, model.denoiser.mask_id
    given, fixed = fixed_tokens(model.text_tokenizer, length, _PROMPT.value, _INFILL.value)
    size = min(_BATCH_SIZE.value, _NUM_SAMPLES.value)
    x_init = prior_sample(size, length, mask_id, jnp.asarray(given[None]), jnp.asarray(fixed[None]))

    key = purpose_key(_SEED.value, "sample")
    print(f"{model.facts['path']}: {config.num_steps} steps, {length} tokens", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        output = None
        if _OUTPUT.value:
            output = stack.enter_context(Path(_OUTPUT.value).open("w", encoding="utf-8"))
        for start in range(0, _NUM_SAMPLES.value, size):
            began = time.monotonic()
            state = jax.block_until_ready(model.denoise(at_step(key, start), x_init, config))
            seconds = time.monotonic() - began
            for row in np.asarray(state.x)[: _NUM_SAMPLES.value - start]:
                text = model.text_tokenizer.decode(row)
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
