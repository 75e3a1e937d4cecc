"""Writes a model in a form that others read.

  python -m experiments.export --checkpoint=runs/demo --format=reference --output=DIR

Formats: `reference`, model.safetensors and config.json as the reference implementation's loader takes them (a
model that came in that layout goes out bit for bit); `orbax`, the parameters alone with the tokenizer, for
sdtt_jax.load. A model card, README.md, stands beside them, with what the run measured if it is one of ours.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from experiments.terminal import run_app
from sdtt_jax.configs import require
from sdtt_jax.errors import ConfigError
from sdtt_jax.interchange.card import measured_results, model_card
from sdtt_jax.interchange.export import export_orbax, export_reference
from sdtt_jax.interchange.model import Model, load_named
from sdtt_jax.paths import is_remote

FORMATS: dict[str, Callable[[Model, Path], list[Path]]] = {
    "reference": export_reference,
    "orbax": export_orbax,
}

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "What to export; as for experiments.sample.")
_FORMAT = flags.DEFINE_string("format", "reference", f"One of: {', '.join(FORMATS)}.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; it must not exist, or be empty.")


def main(argv: Sequence[str]) -> None:
    """Exports as the flags ask."""
    if len(argv) > 1:
        raise ConfigError(f"Unknown argument {argv[1]!r}; see --help.")
    for name in ("checkpoint", "output"):
        require(flags.FLAGS[name].value is not None, f"--{name} is missing; see --help.")
    require(
        _FORMAT.value in FORMATS,
        f"--format={_FORMAT.value} is unknown; choose one of {', '.join(FORMATS)}.",
    )
    output = str(_OUTPUT.value)
    require(not is_remote(output), f"--output={output} must be a local folder; copy it from there.")
    model = load_named(str(_CHECKPOINT.value))
    written = FORMATS[_FORMAT.value](model, Path(output))
    card = Path(output) / "README.md"
    card.write_text(model_card(model, _FORMAT.value, measured_results(model)), "utf-8")
    for path in (*written, card):
        print(path)


if __name__ == "__main__":
    run_app(main)
