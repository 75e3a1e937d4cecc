"""Finds the delivered model in a run's folder; for errors, explains why another folder has none."""

import logging
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from sdtt_jax.checkpoints.orbax import is_committed
from sdtt_jax.checkpoints.store import PARTS
from sdtt_jax.interchange.unfinished import UNFINISHED

LOG = logging.getLogger(__name__)
FINAL = "final"  # the folder of a delivered model's parameters
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
# Formats of other libraries.
FOREIGN = (".h5", ".keras", ".msgpack", ".npz", ".onnx", ".ot", ".tflite")
GGUF = ".gguf"
ADAPTER_FILE = "adapter_model.safetensors"  # low-rank adapters without their base model
# Of `experiments.export --format=stablehlo`.
SAMPLER = "sampler.stablehlo"
# The parts of a training step's checkpoint.
STEP_PARTS = ("state", "meta")
TO_SAFETENSORS = (
    "If you trust it, convert it with safetensors.torch.save_file(state_dict, 'model.safetensors')."
)


def finished(path: Path) -> Path | None:
    """The folder of parameters in that of a run, a stage or a round; None if there is none."""
    rounds = _last_first((path / "rounds").glob(f"*/{FINAL}"))
    numbered = _last_first(f for f in path.glob(f"[0-9]*/{FINAL}") if f.parent.name.isdecimal())
    for candidate in (path, *rounds, path / "teacher" / FINAL, path / FINAL, *numbered):
        if is_committed(candidate) and all((candidate / part).is_dir() for part in PARTS):
            return candidate
    return None


def log_choice(path: Path, found: Path) -> None:
    """Logs that the model `found` is a run's teacher, where the run `path` has, or was to have, students."""
    if found != path / "teacher" / FINAL:
        return
    others = [final.parent for final in sorted(path.glob(f"*/[0-9]*/{FINAL}"))]
    if others or (path / "rounds").is_dir():
        LOG.warning(
            "%s has no finished round of SDTT: this is its teacher%s.",
            path,
            "".join(f"; for its student give {other}" for other in others[-1:]),
        )


def _last_first(finals: Iterable[Path]) -> list[Path]:
    """Delivered folders of rounds by their number, 100 before 99, and then those of another name."""

    def place(final: Path) -> tuple[int, str]:
        name = final.parent.name
        return int(name) if name.isdecimal() else -1, name

    return sorted(finals, key=place, reverse=True)


def describe_folder(folder: Path, models: Sequence[Path]) -> str:
    """Describes a folder without a model, in a sentence with a remedy; `models` are those in the folder."""
    folder = folder if folder.name else folder.absolute()
    for place in (folder, folder.parent):
        if all((place / part).is_dir() for part in STEP_PARTS):
            part = "" if place == folder else "a part of "
            return f"It is {part}a training checkpoint: give {place.parent}."
    snapshots = sorted((folder / "snapshots").glob("*/"))
    if snapshots and (folder / "refs").is_dir():  # of the hub's cache
        return (
            f"It is a repository in the hub's cache: give {' or '.join(map(str, snapshots[:3]))}."
        )
    if all((folder.parent / part).is_dir() for part in PARTS):
        return f"It is a part of a model: give {folder.parent}."
    return describe([entry.name for entry in folder.iterdir()], models)


def describe(names: Collection[str], models: Sequence[Path] = ()) -> str:
    """Describes files and folders by name, in a sentence with a remedy; `models` are those with a model."""
    if UNFINISHED in names or any(name.startswith(".model.safetensors.") for name in names):
        return "It holds an export that was stopped: repeat the command that made it."
    # Hidden files are no content: a run that was refused leaves its lock.
    names = sorted(name for name in names if not name.startswith("."))

    def ending(*suffixes: str) -> str:
        return ", ".join(name for name in names if name.endswith(suffixes))

    if SAMPLER in names:
        return (
            "It holds an exported sampler, which cannot be loaded (run it with `python run.py SEED` there): "
            "give the model it was exported from."
        )
    tensors = ending(".safetensors")
    if ADAPTER_FILE in names or "adapter_config.json" in names:
        return (
            "It holds an adapter (LoRA), which is not a model: merge it into its base model first."
        )
    if tensors:
        return (
            f"It holds {tensors}: give the file itself, or rename it to model.safetensors; several files "
            "need their model.safetensors.index.json."
        )
    if ending(GGUF):
        return f"It holds {ending(GGUF)}: give the file itself."
    if ending(*PICKLED):
        return (
            f"It holds {ending(*PICKLED)}, pickled weights, which are not read: unpickling a file runs the "
            f"code in it. {TO_SAFETENSORS}"
        )
    if ending(*FOREIGN):
        return f"It holds {ending(*FOREIGN)}, a format that is not read: convert it to safetensors."
    steps = [name for name in names if re.fullmatch(r"\d+", name)]
    if steps:
        return (
            f"It holds checkpoints (steps {', '.join(sorted(steps, key=int))}) of a training run that has "
            "not finished: finish it with experiments.run."
        )
    if {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"} & set(names):
        return "It holds an Orbax checkpoint of another program, or a part of one."
    # The last two, while it prepares its data.
    if {"teacher", "rounds", "metrics.jsonl"} & set(names) or {"config.json", "data"} <= set(names):
        return "It holds a run none of whose models has finished: finish it with experiments.run."
    shown = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
    meant = f"; did you mean {' or '.join(map(str, models[:3]))}?" if models else "."
    return f"It holds {shown}{meant}" if names else "It is an empty folder."
