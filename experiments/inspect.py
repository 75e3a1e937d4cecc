"""Says what a checkpoint was recognised as, and checks that on real text.

  python -m experiments.inspect --checkpoint=smollm2
  python -m experiments.inspect --checkpoint=OWNER/NAME --held_out=text.jsonl --output=x.json
  python -m experiments.inspect --checkpoint=folder/ --mask_id=151666 --shift=true

For a network of the Llama family or a GPT-2, it prints the loss with and without shift, and with
bidirectional and with causal attention. If the recognised reading does not have by far the lowest
loss, the checkpoint was recognised wrongly. A noise-coupled student is a function of its noise, and
has no loss, nor has a model of every n-th token.
"""

from collections.abc import Sequence

from absl import flags

from experiments.cli.app import check_flags, output_file, run_app
from experiments.cli.fields import define_checkpoint, define_given, given_flags
from experiments.stages.mirror import own_data
from sdtt_jax.config import positive
from sdtt_jax.evaluation.inspection import losses, own_reading, recognised
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.texts import held_out, held_out_name
from sdtt_jax.formats import write_json
from sdtt_jax.interchange.load import load
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model

_CHECKPOINT = define_checkpoint()
define_given()
_HELD_OUT = flags.DEFINE_string(
    "held_out",
    "world_english_bible",
    "Real text: a file or folder, or a named set; empty for the validation split of the checkpoint's run, "
    "the default for a model of instructions.",
)
_TEXTS = flags.DEFINE_integer("texts", 8, "Number of texts to read.")
_TOKENS = flags.DEFINE_integer("tokens", 128, "The most tokens to read of each text.")
_MASKINGS = flags.DEFINE_integer(
    "num_maskings", 8, "Maskings of each text; for a causal model, pieces that it is cut into."
)
_OUTPUT = flags.DEFINE_string("output", None, "Also write what is printed to this JSON file.")


def main(argv: Sequence[str]) -> None:
    """Inspects as the flags ask."""
    check_flags(argv, "checkpoint")
    positive(**{f"--{flag.name}": flag.value for flag in (_TEXTS, _TOKENS, _MASKINGS)})
    output = output_file(_OUTPUT.value)
    model = load(str(_CHECKPOINT.value), **given_flags())
    found = recognised(model)
    for name, value in found.items():
        lines = value.items() if isinstance(value, dict) else [("", value)]
        for field, one in lines:
            print(f"{name:<14}{field:<18}{one}")
    if model.tokenizer is None:
        print("There is no tokenizer, so no text can be read.")
    elif isinstance(model, Model) and model.diffusion.noise_kind is not None:
        print("There is no loss: the model is a function of its noise and has no likelihood.")
    elif isinstance(model, CausalModel) and model.every is not None:
        print(
            f"There is no loss of text: it models only one token in {model.every}, for mode=skeleton."
        )
    else:
        length = min(_TOKENS.value, model.config.length)
        asked = _HELD_OUT.present or model.prompt_end is None
        source = _HELD_OUT.value if asked else ""  # plain text says nothing of instructions
        settings = Settings(held_out=source, length=length, held_out_texts=_TEXTS.value)
        subject = Subject(model, settings, data=None if source else own_data(model))
        tokens = held_out(subject)
        print(f"\nloss on {held_out_name(subject)}, {len(tokens)} texts of {length} tokens:")
        key = purpose_key(settings.seed, "evaluate.bound")
        values = losses(model, tokens, key, num_maskings=_MASKINGS.value)
        own = own_reading(model)
        lowest = min(values, key=lambda reading: (values[reading], reading != own))
        for reading, value in values.items():
            mark = "  as recognised" if reading == own else ""
            print(f"  {reading!s:<30}{value:8.3f} nats per token{mark}")
        found["losses"] = {str(reading): value for reading, value in values.items()}
        found["recognised"], found["lowest"] = str(own), str(lowest)
        if lowest != own:
            print(
                f"The loss is lower when the checkpoint is read as {lowest}: that may be what it is."
            )
    if output is not None:
        write_json(output, found)


if __name__ == "__main__":
    run_app(main)
