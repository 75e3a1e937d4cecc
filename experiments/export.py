"""Writes a model in a form that others read.

  python -m experiments.export --checkpoint=runs/demo --format=reference --output=DIR

Formats: `reference`, model.safetensors and config.json as the reference implementation's loader takes them (a
model that came in that layout goes out bit for bit); `orbax`, the parameters alone with the tokenizer, for
sdtt_jax.load. A model card, README.md, stands beside them, with what the run measured if it is one of ours.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.terminal import run_app
from sdtt_jax.configs import require
from sdtt_jax.errors import ConfigError
from sdtt_jax.interchange.export import export_orbax, export_reference
from sdtt_jax.interchange.model import Model, load_named
from sdtt_jax.paths import as_path, is_remote

FORMATS: dict[str, Callable[[Model, Path], list[Path]]] = {
    "reference": export_reference,
    "orbax": export_orbax,
}

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "What to export; as for experiments.sample.")
_FORMAT = flags.DEFINE_string("format", "reference", f"One of: {', '.join(FORMATS)}.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; it must not exist, or be empty.")


def model_card(model: Model, format_name: str, results: dict[str, Any] | None) -> str:
    """Markdown that says what the files are, and what was measured."""
    c, facts = model.config, model.facts
    lines = [
        "# Masked diffusion language model",
        "",
        f"Exported by sdtt_jax from `{facts['path']}`, format `{format_name}`.",
        "",
        "| | |",
        "|---|---|",
        f"| network | DiT, {c.num_layers} layers of {c.embed_dim}, {c.num_heads} heads |",
        f"| sequences | {c.length} tokens of {c.vocab_size}, and MASK (id {model.denoiser.mask_id}) |",
        f"| noise schedule | {facts['schedule']['kind']} |",
    ]
    told = ("stage", "round", "dt", "divergence", "num_distill_steps")
    lines += [f"| {name.replace('_', ' ')} | {facts[name]} |" for name in told if name in facts]
    steps = _measured(facts, results)
    if steps:
        lines += [
            "",
            "Generative perplexity under the run's own judge, and entropy of the tokens within a text:",
            "",
            "| steps | generative perplexity | entropy, nats |",
            "|---|---|---|",
            *(f"| {n} | {s['gen_ppl']:.2f} | {s['entropy']:.3f} |" for n, s in steps.items()),
        ]
    return "\n".join(lines) + "\n"


def _measured(facts: dict[str, Any], results: dict[str, Any] | None) -> dict[str, Any]:
    if not results:
        return {}
    if facts.get("stage") == "teacher":
        found: dict[str, Any] = results["teacher"]["steps"]
        return found
    rounds = [r for r in results["rounds"] if r["round"] == facts.get("round")]
    return rounds[0]["steps"] if rounds else {}


def _results(model: Model) -> dict[str, Any] | None:
    path = as_path(model.facts["path"])
    for folder in (path, *path.parents):
        if (folder / "results.json").exists() and (folder / "config.json").exists():
            results: dict[str, Any] = json.loads((folder / "results.json").read_text("utf-8"))
            return results
    return None


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
    card.write_text(model_card(model, _FORMAT.value, _results(model)), "utf-8")
    for path in (*written, card):
        print(path)


if __name__ == "__main__":
    run_app(main)
