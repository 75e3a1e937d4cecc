"""Writes text with a distilled model, or with a causal one.

  python -m experiments.sample --checkpoint=runs/demo --num_steps=8 --num_samples=4
  python -m experiments.sample --checkpoint=runs/demo/rounds/02 --prompt="in the" --num_steps=8
  python -m experiments.sample --checkpoint=runs/demo --infill="and god said [8] and there was [5]"
  python -m experiments.sample --checkpoint=runs/demo --prompt="in the" --prompt="let him" \\
      --num_samples=2
  python -m experiments.sample --checkpoint=runs/demo --num_steps=16 --num_samples=1 --watch
  python -m experiments.sample --checkpoint=smollm2 --prompt="The capital of France is" --num_tokens=20

--prompt and --infill apply to all texts if given once; otherwise give one for each text. --watch
shows the texts appear as they are denoised, one after the other. In Python,
`model.sample(jax.random.key(SEED), …)` gives the same texts (with JAX's default keys). All devices
share each batch. Give the same command to each of several processes; the first one writes the texts.
A causal model continues one prompt, token by token.
"""

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.cli import fields
from experiments.cli.app import check_flags, join_processes, output_file, run_app
from experiments.cli.devices import chosen_mesh
from experiments.cli.output import json_lines
from experiments.cli.watch import watch
from experiments.stages.mirror import own_data
from sdtt_jax.config import at_least, positive, require, whole
from sdtt_jax.data import Tokenizer
from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.diffusion.decoders.serving import ran_out
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.evaluation.settings import Sampling
from sdtt_jax.evaluation.subject import OWN, check_writes
from sdtt_jax.evaluation.variants import variant
from sdtt_jax.interchange.load import load
from sdtt_jax.keys import seed_key
from sdtt_jax.model.base import Loaded
from sdtt_jax.model.batches import Written, batched, unmasked
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.learnt import with_stored_schedule
from sdtt_jax.model.masked import Model
from sdtt_jax.model.prompts import cut_at_eos, reading_notes
from sdtt_jax.parallel import processes
from sdtt_jax.typing import Params

# Tokens that a causal model writes without --num_tokens, if so many fit.
WRITTEN = 64

_CHECKPOINT = fields.define_checkpoint()
fields.define_given()
_HELPER = fields.define_helper()
_LENGTH = flags.DEFINE_integer(
    "length", None, "Tokens of a text, for a published denoiser of the Llama family."
)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 16, "Number of reverse steps, or of network calls.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 4, "Number of texts.")
_PROMPT = flags.DEFINE_multi_string(
    "prompt", None, "Text to continue: one for all texts, or one for each"
)
_INFILL = flags.DEFINE_multi_string(
    "infill", None, "Text with gaps, [12] for 12 tokens: one for all texts, or one for each"
)
_NUM_TOKENS = flags.DEFINE_integer(
    "num_tokens",
    None,
    "Tokens to write after the prompt, for a model of single texts or a causal one (by default "
    f"{WRITTEN}, or as many as fit).",
)
_STOP_AT_EOS = flags.DEFINE_bool("stop_at_eos", False, "Leave out what follows the end of a text.")
_DTYPE = fields.define_compute_dtype()
_WATCH = flags.DEFINE_bool("watch", False, "Show the texts as they appear, one after the other.")
_PAUSE = flags.DEFINE_float(
    "pause", 0.15, "With --watch: show each step for at least this many seconds."
)
_OUTPUT = flags.DEFINE_string("output", None, "Also write the texts to this file, as JSON lines.")
fields.define_flags(Sampling)
fields.show_in_help("mesh", "distributed", "compilation_cache")


def main(argv: Sequence[str]) -> None:
    """Samples as the flags ask."""
    check_flags(argv, "checkpoint")
    positive(**{"--num_samples": _NUM_SAMPLES.value})
    at_least(0, **{"--pause": _PAUSE.value})
    require(
        _WATCH.value or not _PAUSE.present, "--pause needs --watch; leave it out, or add --watch."
    )
    sampling = fields.from_flags(Sampling)
    config = sampling.sampler(_NUM_STEPS.value)
    fields.require_helper([config.mode], _HELPER.value)
    join_processes()
    file = processes.on_first("Checking --output", lambda: output_file(_OUTPUT.value))
    require(
        not _WATCH.value or jax.process_count() == 1,
        "--watch works with one process only; leave it out.",
    )
    model = load(
        str(_CHECKPOINT.value),
        compute_dtype=_DTYPE.value,
        mesh=chosen_mesh(),
        **fields.given_flags(length=_LENGTH.value),
    )
    if isinstance(model, CausalModel):
        what, lines = _continued(model, sampling)
    else:
        what, lines = _denoised(model, sampling, config)
    first = processes.is_first()
    if first:
        notes = reading_notes(model.text_tokenizer, _PROMPT.value or (), _INFILL.value or ())
        devices = "" if model.mesh is None else f" on {model.mesh.size} devices"
        print(*notes, f"{model.facts['path']}: {what}{devices}", sep="\n", file=sys.stderr)
    with json_lines(file) as write:
        for line in lines:
            if first and not _WATCH.value:
                print(f"— {line['text']}\n", flush=True)
            write(line)


def _continued(model: CausalModel, sampling: Sampling) -> tuple[str, Iterator[dict[str, Any]]]:
    """What a causal model is about to write, in words, and its texts as `_written` gives them."""
    for flag in (_NUM_STEPS, _INFILL, _HELPER, _WATCH):
        require(
            not flag.present,
            f"--{flag.name} is for denoisers, and {model.facts['path']} is causal; leave it out.",
        )
    prompts = _PROMPT.value or [""]
    require(
        len(prompts) == 1,
        f"--prompt is given {len(prompts)} times, but a causal model continues one prompt; give one.",
    )
    variant(model, sampling, None)  # refuses what only denoisers read
    given = model.prior(_NUM_SAMPLES.value, prompts[0])
    length = given.shape[1] - 1  # BOS is no token of the text
    room = model.context - length
    count = max(1, min(WRITTEN, room)) if _NUM_TOKENS.value is None else _NUM_TOKENS.value
    whole(1, **{"--num_tokens": count})
    require(
        count <= room,
        f"--num_tokens={count} do not fit behind the prompt's {length}: {model.facts['path']} reads texts of "
        f"{model.context} tokens.",
    )
    key = seed_key(sampling.seed)
    batches = model.batches(key, given, count, sampling.batch_size, **sampling.filters)

    def lines() -> Iterator[dict[str, Any]]:
        for write in batches:
            tokens, facts = _timed(write)
            rows = tokens[:, 1:]
            fixed = np.broadcast_to(np.arange(rows.shape[1]) < length, rows.shape)
            yield from _lines(model.text_tokenizer, _stopped(model, rows, fixed), facts)

    return f"{length + count} tokens, one by one", lines()


def _denoised(
    model: Model, sampling: Sampling, config: SamplerConfig
) -> tuple[str, Iterator[dict[str, Any]]]:
    """What a denoiser is about to write, in words, and its texts as `_written` gives them."""
    x_init = processes.to_host(
        model.prior(
            _NUM_SAMPLES.value, _texts(_PROMPT.value), _texts(_INFILL.value), _NUM_TOKENS.value
        )
    )
    helper = load(_HELPER.value, mesh=chosen_mesh()) if _HELPER.value else None
    data = own_data(model) if sampling.neighbours == OWN else None

    def check(near: Model) -> None:
        """Refuses what sampling would, before neighbours are stored, which takes long."""
        near.batches(seed_key(sampling.seed), x_init, config, sampling.batch_size, helper)
        check_writes(near, with_stored_schedule(config, near), helper, x_init.shape[1])

    model = variant(model, sampling, data, check)
    count, place = _NUM_TOKENS.value, " after the given text"
    if count is None:
        count, place = model.config.length, ""
    what = f"{config.num_steps} steps, {count} tokens{place}"
    return what, _written(model, x_init, sampling, config, helper)


def _written(
    model: Model,
    x_init: np.ndarray,
    sampling: Sampling,
    config: SamplerConfig,
    helper: Loaded | None,
) -> Iterator[dict[str, Any]]:
    """Text, tokens and facts of each row of `x_init: [B, L]` int32 as it is written."""
    key, tokenizer, done = seed_key(sampling.seed), model.text_tokenizer, 0
    mode, short = parse_mode(config.mode), False

    def stopped(tokens: np.ndarray, given: np.ndarray) -> np.ndarray:
        """`given: [texts, length]` int32 is what the texts began as."""
        return _stopped(model, tokens, given != model.mask_id)

    def watched(params: Params, index: jax.Array, rows: jax.Array) -> Written:
        """Shows the first text as the batch is written, and then replays the others."""
        del params
        states = model.states(jax.random.fold_in(key, index), rows, config, helper)
        finish = functools.partial(stopped, given=np.asarray(rows))
        # A batch that is not full, or that the devices do not divide, is filled up.
        size = sampling.batch_size
        for row in range(min(size, len(x_init) - int(index) * size)):
            states, again = itertools.tee(states)
            state = watch(again, tokenizer, config.num_steps, _PAUSE.value, row=row, finish=finish)
        return Written(state.x, jnp.full(len(rows), state.nfe))

    if _WATCH.value:
        filler = unmasked(x_init, model.mask_id)
        batches = batched(watched, model.params, x_init, sampling.batch_size, filler)
    else:
        batches = model.batches(key, x_init, config, sampling.batch_size, helper)
    for write in batches:
        tokens, facts = _timed(write)
        tokens = stopped(tokens, x_init[done : done + len(tokens)])
        done += len(tokens)
        short |= ran_out(mode, config.num_steps, config.guidance, facts["nfe"])
        yield from _lines(tokenizer, tokens, {"num_steps": config.num_steps} | facts)
    if short and processes.is_first():
        print(
            f"mode={mode}: --num_steps={config.num_steps} left tokens masked, which were filled with the "
            "most probable ones; take more steps.",
            file=sys.stderr,
        )


def _timed(write: Callable[[], Written]) -> tuple[np.ndarray, dict[str, Any]]:
    """The tokens of a batch, with the number of network calls and the seconds that they took."""
    began = time.monotonic()
    tokens, nfe = write()
    return tokens, {"nfe": int(nfe[0]), "seconds": time.monotonic() - began}


def _stopped(model: Model | CausalModel, tokens: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Texts that end as --stop_at_eos says; `fixed: [texts, length]` bool is what was given."""
    if not _STOP_AT_EOS.value:
        return tokens
    tokenizer = model.text_tokenizer
    return cut_at_eos(tokens, fixed, tokenizer.bos_id, tokenizer.eos_id)


def _lines(
    tokenizer: Tokenizer, tokens: np.ndarray, facts: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Text, tokens and the batch's facts of each row."""
    for row in tokens:
        yield {"text": tokenizer.decode(row), "tokens": row.tolist()} | facts


def _texts(given: list[str] | None) -> str | list[str] | None:
    return given[0] if given is not None and len(given) == 1 else given


if __name__ == "__main__":
    run_app(main)
