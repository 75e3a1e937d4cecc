"""Exports a model.

  python -m experiments.export --checkpoint=runs/demo --format=reference --output=DIR
  python -m experiments.export --checkpoint=runs/demo --format=stablehlo --num_steps=8 --output=DIR
  python -m experiments.export --checkpoint=runs/demo --format=stablehlo --mode=speculative \\
      --helper=runs/demo/teacher --output=DIR
  python -m experiments.export --checkpoint=runs/demo --format=reference --output=DIR \\
      --push=OWNER/NAME

Formats:

  reference  model.safetensors and config.json as the reference implementation's loader reads them;
             a model that came in a published layout is written back with the dtype and bits of each
             tensor, its tokenizer's files, and what --causal, --mask_id and --shift said of it
  orbax      the parameters alone with the tokenizer, for sdtt_jax.load
  stablehlo  the sampler for a number of steps and texts as one artifact for CPU, CUDA and TPU, with
             a runner that needs no sdtt_jax; any --mode, with the parameters of its --helper in
             addition to the model's, and with the early exits that --early_exit names

A model card, README.md, is added, with the measurements if the model is from a run of this library.
--push uploads the folder to the model hub, into a private repository unless --public is given; the
token is taken from $HF_TOKEN. An export that is stopped or killed is begun anew by the same command.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.cli import fields
from experiments.cli.app import check_flags, refuse, run_app
from sdtt_jax.checkpoints.orbax import require_plain
from sdtt_jax.config import choose, require
from sdtt_jax.errors import MismatchError
from sdtt_jax.evaluation.settings import Decoding, Variation
from sdtt_jax.evaluation.variants import variant
from sdtt_jax.interchange import hub
from sdtt_jax.interchange.card import measured_results, model_card
from sdtt_jax.interchange.export import export_orbax, export_reference
from sdtt_jax.interchange.hub import TOKENIZER_FILES
from sdtt_jax.interchange.load import REPOSITORY, load
from sdtt_jax.interchange.stablehlo import export_stablehlo
from sdtt_jax.interchange.unfinished import filled_whole, require_empty
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.paths import is_remote, resolve_links

FORMATS = ("reference", "orbax", "stablehlo")

_CHECKPOINT = fields.define_checkpoint()
fields.define_given()
_FORMAT = flags.DEFINE_string("format", "reference", f"One of: {', '.join(FORMATS)}.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; it must not exist, or be empty.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 16, "stablehlo: reverse steps of the sampler.")
_HELPER = fields.define_helper()
fields.define_flags(Decoding)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "stablehlo: texts at once.")
_EARLY_EXIT = flags.DEFINE_float(
    "early_exit",
    Variation.early_exit,
    "stablehlo: early exit from the network, as with experiments.sample; 0: off.",
)
_PUSH = flags.DEFINE_string(
    "push", None, "Then upload it to this repository of the hub, OWNER/NAME."
)
_PUBLIC = flags.DEFINE_bool("public", False, "With --push: make a new repository public.")


def write(model: Model | CausalModel, output: Path) -> list[Path]:
    """Exports in the format that the flags name."""
    if _FORMAT.value == "reference":
        return export_reference(model, output)
    if _FORMAT.value == "orbax":
        return export_orbax(model, output)
    if isinstance(model, CausalModel):
        raise MismatchError(
            f"{model.facts['path']} holds a causal model; --format=stablehlo exports a denoiser's sampler."
        )
    config = fields.from_flags(Decoding).sampler(_NUM_STEPS.value)
    helper = load(_HELPER.value) if _HELPER.value else None
    model = variant(model, Variation(early_exit=_EARLY_EXIT.value), None)
    return export_stablehlo(model, output, config, _BATCH_SIZE.value, helper)


def main(argv: Sequence[str]) -> None:
    """Exports as the flags ask."""
    check_flags(argv, "checkpoint", "output")
    choose("--format", _FORMAT.value, FORMATS)
    if _FORMAT.value != "stablehlo":
        decoding = [field.name for field in dataclasses.fields(Decoding)]
        sampling = ("num_steps", "batch_size", "helper", "early_exit", *decoding)
        refuse(
            f"--format={_FORMAT.value} exports no sampler, as --format=stablehlo does", *sampling
        )
    fields.from_flags(Decoding)
    Variation(early_exit=_EARLY_EXIT.value)
    folder = str(_OUTPUT.value)
    require(not is_remote(folder), f"--output={folder} must be a local folder; copy it from there.")
    output = resolve_links(folder)
    require_empty(output)
    if _FORMAT.value == "orbax":
        require_plain(output)
    require(
        _PUSH.value is not None or not _PUBLIC.value,
        "--public needs --push; leave it out, or name a repository with --push.",
    )
    token = ""
    if _PUSH.value is not None:
        require(
            bool(REPOSITORY.fullmatch(_PUSH.value)),
            f"--push={_PUSH.value} is not OWNER/NAME; name a repository in this form.",
        )
        token = hub.push_token()
    model = load(str(_CHECKPOINT.value), **fields.given_flags())
    # Before any file is written: a damaged results.json then leaves no half of an export.
    text = model_card(model, _FORMAT.value, measured_results(model))
    card = output / "README.md"
    with filled_whole(output):
        written = [*write(model, output), card]
        card.write_text(text, "utf-8")
    stored = TOKENIZER_FILES[0] in [path.name for path in written]
    kind = None if model.tokenizer is None else model.tokenizer.config.kind
    if _FORMAT.value == "reference" and not stored and kind not in (None, "gpt2"):
        print(
            "This format does not include the tokenizer; to read and write text, use --format=orbax.",
            file=sys.stderr,
        )
    places = [str(path) for path in written]
    if _PUSH.value is not None:
        places.append(hub.push(output, _PUSH.value, token, public=_PUBLIC.value))
    print("\n".join(places))


if __name__ == "__main__":
    run_app(main)
