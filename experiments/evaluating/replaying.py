"""Given maskings of a suffix, scored: the numbers of another implementation must come out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evaluating.output import Output, digest_of
from experiments.evaluating.subject import Subject
from sdtt_jax.config import require
from sdtt_jax.errors import DataError
from sdtt_jax.evaluation.cloze import replayed_bounds
from sdtt_jax.evaluation.continuations import Continuation, Layout
from sdtt_jax.evaluation.likelihood import greedy_infill
from sdtt_jax.model.masked import Model

Json = dict[str, Any]
NAMES = ("prefix", "suffix", "xt", "t")


def replay(subject: Subject, output: Output, path: str, say: Callable[[str], None]) -> None:
    """What a denoiser says of a suffix under maskings that were drawn elsewhere.

    Args:
      subject: a denoiser; it needs no tokenizer.
      output: gets `replayed/bound`: nats of the suffix for each masking, their mean, and the most probable
        tokens of the whole suffix.
      path: an .npz file with ids `prefix: [p]`, `suffix: [s]` (its last token stands visible, as the EOS of
        the reference), and the maskings `xt: [maskings, p + s]` at times `t: [maskings]`.
      say: hears the figures.

    Raises:
      ConfigError: the model is causal, or the maskings are not of that text.
      DataError: naming the file and the array.
    """
    model = subject.model
    require(
        isinstance(model, Model),
        f"--maskings is for denoisers, and {subject.identity['path']} is causal.",
    )
    assert isinstance(model, Model)
    found = _read(path)
    item = Continuation(found["prefix"], found["suffix"][:-1])
    layout = Layout(eos_id=int(found["suffix"][-1]))

    def compute() -> Json:
        bounds = replayed_bounds(
            model.diffusion,
            model.params,
            item,
            found["xt"],
            found["t"],
            layout,
            batch_size=subject.settings.batch_size,
        )
        return {
            "nll_per_masking": bounds.tolist(),
            "nll": float(bounds.mean()),
            "greedy": _greedy(model, found),
        }

    inputs = {
        "model": {k: subject.identity[k] for k in ("digest", "precision")},
        "maskings": digest_of([found[name].ravel() for name in NAMES]),
    }
    result = output.item("replayed/bound", inputs, compute)
    say(f"  {len(found['t'])} maskings: {result['nll']:.6f} nats of the suffix")


def _greedy(model: Model, found: dict[str, np.ndarray]) -> list[int]:
    text = np.concatenate([found["prefix"], found["suffix"]])
    start = len(found["prefix"])
    text[start:-1] = model.mask_id
    with model.on_mesh():
        infill = jax.jit(greedy_infill, static_argnames="diffusion")
        x_t = model.placed(text[None])
        filled = infill(model.diffusion, model.params, x_t, jnp.float32(1.0))
    tokens: list[int] = np.asarray(filled)[0, start:].tolist()
    return tokens


def _read(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: np.asarray(file[name]) for name in NAMES}
    except KeyError as error:
        raise DataError(f"{path} lacks an array: {error}; it needs {', '.join(NAMES)}.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as .npz ({error}).") from None
    found["t"] = found["t"].astype(np.float32)
    for name in ("prefix", "suffix", "xt"):
        found[name] = found[name].astype(np.int32)
    rows, length = len(found["t"]), len(found["prefix"]) + len(found["suffix"])
    if len(found["suffix"]) < 2 or found["xt"].shape != (rows, length):
        raise DataError(
            f"{path}: xt is {list(found['xt'].shape)}, but {rows} times and {length} tokens make "
            f"[{rows}, {length}], with two tokens of suffix at least."
        )
    return found
