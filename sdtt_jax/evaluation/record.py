"""The JSON file of an evaluation: finished items, and next to it the batches of the one in progress."""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import platform
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdtt_jax.checkpoints.digests import canonical_sha256
from sdtt_jax.config import differences, require
from sdtt_jax.errors import ConfigError, UserError
from sdtt_jax.formats import read_json, write_json
from sdtt_jax.model.batches import join
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.networks.attention.dispatch import matmul_precision
from sdtt_jax.parallel import processes
from sdtt_jax.paths import as_path, file_lock, is_irregular, write_bytes, write_text
from sdtt_jax.progress import tracked

FORMAT = "sdtt_jax evaluation 2"
EARLIER = "sdtt_jax evaluation 1"
"""The format of earlier versions, whose items do not all say what they would be computed from now."""
FOLDER = "evaluations"
"""The folder in a run's directory whose JSON files its report shows."""
PACKAGES = ("sdtt_jax", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")
PART = "part of the evaluation"
"""The array in a file of a part that says which one it is: the item, a digest of its inputs, the part."""
Json = dict[str, Any]
Arrays = dict[str, np.ndarray]


def place_in_run(facts: Mapping[str, Any]) -> str:
    """The folder, within its run, of a model with these facts: `teacher`, `rounds/02`, `alpha/01`."""
    stage = "rounds" if facts["stage"] == "distill" else facts["stage"]
    return f"{stage}/{facts['round']:02d}" if facts.get("round") else stage


def own_name(place: str) -> str:
    """The name of the record of the model in a folder of its run: `teacher`, `round_02`, `alpha_01`."""
    return place.replace("rounds/", "round/").replace("/", "_")


def own_path(model: Model | CausalModel) -> Path | None:
    """The record of a model in its run's directory; None for models from elsewhere, and for variants."""
    root, facts = model.run_folder, model.facts
    if root is None or "variant" in facts:
        return None
    return root / FOLDER / f"{own_name(place_in_run(facts))}.json"


class Record:
    """A file of results that grows item by item, with a folder of finished batches next to it.

    An item that is in the file with the same inputs is not computed again, and an interrupted one continues
    after its last finished batch. All processes call the same methods in the same order; the first one
    writes. Several evaluations of one model may fill one file at once: each adds its items to those that it
    finds (in a bucket, which has no locks, two that end in the same second may still lose one).

    Args:
      path: the JSON file.
      model: `identity` of the model that is evaluated; a file of another model is refused.
      log: called with one line for each result.
      replace: start a new file instead of refusing one of another model.

    Raises:
      ConfigError: the file is not a sound file of results, or is another model's.
    """

    def __init__(
        self,
        path: str | Path,
        model: Json,
        log: Callable[[str], None] = lambda _: None,
        *,
        replace: bool = False,
    ):
        self.path, self.log, self._replace = as_path(path), log, replace
        self._parts = self.path.with_name(self.path.name + ".parts")
        self._content: Json = {"format": FORMAT, "model": model, "items": {}}
        self._own: Json = {}  # the items of this call
        self._removed: set[str] = set()
        require(not self.path.is_dir(), f"--output={self.path} is a folder; name a file.")
        require(
            not is_irregular(self.path),
            f"--output={self.path} is a device or a pipe, which keeps no results; name a file.",
        )
        self._content["items"] = self._earlier()
        self._content["environment"] = environment()
        try:
            self._write()
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written to: {error.strerror}; make room or name another file."
            ) from None

    @property
    def items(self) -> Json:
        """Results by name, of this call and earlier ones."""
        return {name: item["result"] for name, item in self._content["items"].items()}

    @property
    def inputs(self) -> Json:
        """What determined each of `items`, by name."""
        return {name: item["inputs"] for name, item in self._content["items"].items()}

    def remove(self, name: str) -> None:
        """Takes an item out of the file, if it is there."""
        if self._content["items"].pop(name, None) is not None:
            self._own.pop(name, None)
            self._removed.add(name)
            self._write()

    def item(
        self, name: str, inputs: Json, compute: Callable[[], Json], named: Json | None = None
    ) -> Json:
        """The result of an item; computed unless the file holds it for the same inputs.

        The inputs are everything that determines it; they and the result are JSON-ready. A result for other
        inputs is replaced, and the log says what they were. Paths of models among them are not compared,
        because a run may be moved. Fields of the result that only name what the inputs identify, such as a
        file, are given as `named` too: in a stored result they take the latest value.
        """
        inputs, stored = _determining(inputs), self._content["items"].get(name)
        same = stored is not None and placeless(stored["inputs"]) == placeless(inputs)
        if processes.agree(same):
            found = _seen(stored, self.path)["result"]
            result = found | {k: v for k, v in _plain(named or {}).items() if k in found}
            if result == found:
                return dict(result)
            item = stored | {"result": result}
        else:
            if stored is not None:
                lines = "; ".join(differences(placeless(stored["inputs"]), placeless(inputs)))
                self.log(
                    f"{name}: replaces the result in {self.path.name} ({lines}); to keep both, use another "
                    "file"
                )
            began = time.monotonic()
            result = _plain(compute())
            seconds = round(time.monotonic() - began, 2)
            item = {"inputs": inputs, "result": result, "seconds": seconds}
        self._content["items"][name] = self._own[name] = item
        self._write()
        return dict(result)

    def part(
        self, name: str, inputs: Json, part: int | str, compute: Callable[[], Arrays]
    ) -> Arrays:
        """One part of an item's work as arrays; read from the folder if it is there and undamaged.

        The inputs are everything that determines the arrays; `part` is the number of a batch, or a name.
        """
        path = self._part(name, inputs, part)
        stored = _agreed(path)
        return _kept(path, compute()) if stored is None else stored

    def batches(
        self,
        name: str,
        inputs: Json,
        batches: Sequence[Callable[[], Any]],
        arrays_of: Callable[[Any], Arrays],
        *,
        tokens: int,
        shown: bool = True,
        title: str = "",
    ) -> Arrays:
        """`kept_batches` in the files of an item; `name` and `inputs` are those of `part`.

        `title` is by default the name.
        """
        paths = [self._part(name, inputs, number) for number in range(len(batches))]
        return kept_batches(title or name, paths, batches, arrays_of, tokens=tokens, shown=shown)

    def write_texts(self, name: str, texts: list[Json]) -> None:
        """An item's texts as JSON lines, in the folder next to the file."""
        if processes.is_first():
            lines = "".join(json.dumps(_plain(text)) + "\n" for text in texts)
            write_text(self._parts / f"{name.replace('/', '_')}.jsonl", lines)

    def _part(self, name: str, inputs: Json, part: int | str) -> Path:
        part = f"{part:05d}" if isinstance(part, int) else part
        digest = canonical_sha256([FORMAT, _determining(inputs)])[:12]
        return self._parts / f"{name.replace('/', '_')}-{digest}/{part}.npz"

    def _earlier(self) -> Json:
        """The items in the file."""
        if not self.path.exists():
            return {}
        content = read_json(self.path, ConfigError, "remove it or give another file")
        if content.get("format") not in (FORMAT, EARLIER):
            raise ConfigError(
                f"{self.path} exists and is not a file of results; remove it or name another file."
            )
        if fault := damage(content):
            raise ConfigError(f"{self.path} is damaged ({fault}); remove it or give another file.")
        if content["format"] == EARLIER:
            if self._replace:
                return {}
            raise ConfigError(
                f"{self.path} was written by an earlier version of sdtt_jax, which measured some figures in "
                "other ways; remove it or give another file."
            )
        model = self._content["model"]
        if content["items"] and content["model"]["digest"] != model["digest"]:
            if self._replace:
                return {}
            raise ConfigError(
                f"{self.path} holds the evaluation of {content['model']['path']} "
                f"({content['model']['digest'][:12]}), not of {model['path']} ({model['digest'][:12]}); give "
                "another file."
            )
        return dict(content["items"])

    def _write(self) -> None:
        if processes.is_first():
            with file_lock(self.path):
                # Another evaluation may have added items since, or replaced some that this one found.
                items = self._content["items"] | self._earlier()
                items = {n: item for n, item in items.items() if n not in self._removed} | self._own
                write_json(self.path, self._content | {"items": items}, allow_nan=False)


def damage(content: Mapping[str, Any]) -> str:
    """What is wrong with a file of results; "" if it has what every file from `Record` has."""
    model, items = content.get("model"), content.get("items")
    if not isinstance(model, Mapping) or not {"path", "digest"} <= set(model):
        return "it does not name its model"
    if not isinstance(items, Mapping):
        return "it has no items"
    for name, item in items.items():
        for part in ("inputs", "result"):
            if not isinstance(item, Mapping) or not isinstance(item.get(part), Mapping):
                return f"{name} has no {part}"
    return ""


def npz(arrays: Arrays) -> bytes:
    """The content of a file of named arrays."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def read_npz(path: Path) -> Arrays | None:
    """The named arrays of a file that `npz` made; None if there is none, or it is damaged."""
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return dict(file)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
        return None


def digest_of(arrays: Iterable[np.ndarray]) -> str:
    """A digest of arrays: of their dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:16]


def environment() -> Json:
    """Versions and devices, so that a result can be traced to what produced it."""
    return {
        "python": platform.python_version(),
        "packages": versions(PACKAGES),
        "device": jax.devices()[0].device_kind,
        "platform": jax.devices()[0].platform,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each package; None: it is not installed.

    Args:
      packages: their names, as pip knows them.
    """
    found: dict[str, str | None] = dict.fromkeys(packages)
    for name in found:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _plain(content: Any) -> Any:
    """The content as JSON returns it: tuples become lists, keys text, and NaN and infinities null."""
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    if isinstance(content, float) and not np.isfinite(content):
        return None
    return content


def _determining(inputs: Json) -> Json:
    """The inputs, JSON-ready, with the precision of matrix products if it is not JAX's default."""
    precision = matmul_precision()
    return _plain(inputs) | ({} if precision is None else {"matmul_precision": precision})


def kept_batches(
    title: str,
    paths: Sequence[Path],
    batches: Sequence[Callable[[], Any]],
    arrays_of: Callable[[Any], Arrays],
    *,
    tokens: int,
    shown: bool = True,
) -> Arrays:
    """The joined arrays of all batches: read from files, or computed under a progress bar and kept there.

    Args:
      title: what is worked on.
      paths: the file of each batch, `.npz`.
      batches: each computes one batch, in all processes.
      arrays_of: names the arrays, `[rows, ...]`, of what a batch has computed.
      tokens: of one batch, for the progress.
      shown: False for work that needs no progress bar.
    """
    found = list(map(_agreed, paths))
    missing = [number for number, arrays in enumerate(found) if arrays is None]
    finished, shown = len(found) - len(missing), shown and processes.is_first()
    for number in tracked(title, missing, tokens=tokens, finished=finished, shown=shown):
        found[number] = _kept(paths[number], arrays_of(batches[number]()))
    return join(found)


def placeless(inputs: Mapping[str, Any]) -> Json:
    """The inputs without the paths of models, which their digests identify."""
    return {
        name: {part: of for part, of in value.items() if part != "path"}
        if isinstance(value, Mapping) and "digest" in value
        else value
        for name, value in inputs.items()
    }


def _agreed(path: Path) -> Arrays | None:
    """The stored arrays of a part if process 0 can read them (then all must); else None."""
    stored = read_npz(path)
    # A file that was copied over another one is computed again.
    if stored is not None and str(stored.pop(PART, "")) != _part_name(path):
        stored = None
    return dict(_seen(stored, path)) if processes.agree(stored is not None) else None


def _kept(path: Path, arrays: Arrays) -> Arrays:
    if processes.is_first():
        write_bytes(path, npz(arrays | {PART: np.array(_part_name(path))}))
    return arrays


def _part_name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def _seen(found: Any, path: Path) -> Any:
    """`found`; raises unless this process sees the file that process 0 sees."""
    if found is None:
        raise UserError(f"Process {jax.process_index()} does not see {path}, but process 0 does.")
    return found
