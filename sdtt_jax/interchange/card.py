"""The model card (README.md) of an exported model."""

import math
from typing import Any

from sdtt_jax.formats import read_json
from sdtt_jax.interchange.llama_export import mask_row
from sdtt_jax.markdown import table
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.networks import kinds
from sdtt_jax.networks.config import CoupledConfig
from sdtt_jax.ops.noise import num_values
from sdtt_jax.version import __version__

# How the files are used, by format.
USE = {
    "reference": "sdtt_jax.load(FOLDER_OR_REPOSITORY)",
    "orbax": "sdtt_jax.load(FOLDER)",
    "stablehlo": "python run.py [SEED]   # needs only jax and safetensors",
}

# Who else reads the format "reference", by kind of network.
READERS = {
    kinds.DENOISER: "   # or the reference's own loader",
    kinds.CAUSAL: "   # or the reference's own loader",
    kinds.GPT2: "   # or transformers",
    kinds.LLAMA: "   # or transformers",
}

DRAWN_FROM_NOISE = (
    'It sees the noise that draws its tokens: sample it with `mode="first-hitting"`, as it was trained, and '
    "`temperature=0` or a low one."
)


def model_card(model: Model | CausalModel, format_name: str, results: dict[str, Any] | None) -> str:
    """The card in Markdown: what the files of a format in `USE` are, how to use them, what was measured."""
    c, facts = model.config, model.facts
    denoiser = isinstance(model, Model)
    kind = "Masked diffusion" if denoiser else "Causal"
    lines = [
        "---",
        "library_name: sdtt_jax",
        "pipeline_tag: text-generation",
        f"tags: [{'masked-diffusion, sdtt' if denoiser else 'causal-lm'}]",
        "---",
        "",
        f"# {kind} language model",
        "",
        f"Exported by sdtt_jax {__version__} from `{facts['path']}`, format `{format_name}`:",
        "",
        f"    {USE[format_name]}{READERS.get(facts['kind'], '') * (format_name == 'reference')}",
        "",
    ]
    title = kinds.KINDS[facts["kind"]].title or facts["kind"]
    network = f"{title}, {c.num_layers} layers of {c.embed_dim}, {c.num_heads} heads"
    mask = f", and MASK (id {_mask(model, format_name)})" if isinstance(model, Model) else ""
    rows = [("network", network), ("sequences", f"{c.length} tokens of {c.vocab_size}{mask}")]
    if isinstance(model, Model):
        rows.append(("noise schedule", model.schedule.config.kind))
    told = ("stage", "round", "dt", "divergence", "num_distill_steps")
    rows += [(name.replace("_", " "), facts[name]) for name in told if name in facts]
    lines.append(table(["", ""], rows))
    if isinstance(c, CoupledConfig) and not num_values(c.noise.drawn):
        lines += ["", DRAWN_FROM_NOISE]
    steps = _measured(model, results)
    if steps:
        measured = (
            (n, _figure(s.get("gen_ppl"), 2), _figure(s.get("entropy"), 3))
            for n, s in steps.items()
        )
        lines += [
            "",
            "Generative perplexity under the run's own judge, and entropy of the tokens within a text:",
            "",
            table(["steps", "generative perplexity", "entropy, nats"], measured),
        ]
    return "\n".join(lines) + "\n"


def _mask(model: Model, format_name: str) -> int:
    """MASK in the numbering of the files of a format."""
    row = mask_row(model) if format_name == "reference" else None
    return model.mask_id if row is None else row


def _measured(model: Model | CausalModel, results: dict[str, Any] | None) -> dict[str, Any]:
    """What the run measured of this very model, not of an earlier one in the same place."""
    if not results:
        return {}
    if model.facts.get("stage") == "judge":
        baseline = results.get("baseline_ar")
        return {"one per token": baseline} if baseline else {}
    of_teacher = model.facts.get("stage") == "teacher"
    entries = [results.get("teacher") or {}] if of_teacher else results.get("rounds") or []
    for entry in entries:
        same_digest = entry.get("params_digest") in (None, model.identity["digest"])
        if entry.get("round") == model.facts.get("round") and same_digest:
            return entry.get("steps") or {}
    return {}


def _figure(value: float | None, digits: int) -> str:
    """A measurement; a dash where there is none, as where no text could be scored."""
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "–"


def measured_results(model: Model | CausalModel) -> dict[str, Any] | None:
    """The `results.json` of the run that made a model; None if there is none."""
    folder = model.run_folder
    if folder is None or not (folder / "results.json").exists():
        return None
    return read_json(folder / "results.json")
