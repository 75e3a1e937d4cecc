"""What every loaded model has: parameters, perhaps a tokenizer, and metadata."""

import abc
import contextlib
import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from jax.typing import ArrayLike

from sdtt_jax.checkpoints.digests import canonical_sha256, params_digest
from sdtt_jax.config import require, to_mapping
from sdtt_jax.data import Tokenizer
from sdtt_jax.diffusion.decoders.base import Helper
from sdtt_jax.errors import CheckpointError
from sdtt_jax.formats import read_json
from sdtt_jax.networks.config import GPT2Config, LlamaConfig, TransformerConfig
from sdtt_jax.ops.sequences import Sequences
from sdtt_jax.parallel.mesh import batch_pieces, context_of, mesh_if_any
from sdtt_jax.parallel.placement import batch_sharding, place, place_whole, replicated
from sdtt_jax.paths import as_path, is_remote, with_target
from sdtt_jax.trees import flat_leaves
from sdtt_jax.typing import Params

# Facts of a checkpoint that are repeated in the results of its model.
KNOWN = ("stage", "round", "dt", "source", "variant")


def _working_directory() -> str:
    """The working directory; empty if it was removed, since absolute paths do not need it."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Loaded(abc.ABC):
    """A network's parameters, with their tokenizer and metadata.

    Attributes:
      params: parameters, a nested dict.
      tokenizer: text to ids and back; None for a published model that came without a readable one.
      facts: what was stored with the parameters (stage, round, dt, …), `path`, and for a variant of a model
        what distinguishes it (`evaluation.variants`).
      cwd: the working directory when it was loaded, from which a relative `path` leads to its folder.
    """

    params: Params
    tokenizer: Tokenizer | None
    facts: dict[str, Any]
    cwd: str = dataclasses.field(default_factory=_working_directory)

    def __post_init__(self) -> None:
        # Of a model that was made in Python, errors and results name these.
        unnamed = {"path": "(in memory)", "kind": type(self).__name__}
        object.__setattr__(self, "facts", unnamed | dict(self.facts))

    def __repr__(self) -> str:
        """One line: what it is, where it is from, and how large it is."""
        config = self.config
        # `load_network` reads none.
        count = f"{self.num_parameters:,} parameters" if self.params else "parameters not read"
        where = "" if self.mesh is None else f", on {self.mesh.size} devices"
        return (
            f"<{type(self).__name__} {self.facts['path']}: {config.num_layers} × "
            f"{config.embed_dim}, {count}, vocabulary of {config.vocab_size:,}, length {config.length}"
            f"{where}>"
        )

    @property
    def num_parameters(self) -> int:
        """The number of parameters, without the rows and columns that pad the vocabulary."""
        columns = self.config.padded_vocab
        padding = columns - self.config.vocab_size - hasattr(self, "mask_id")
        leaves = flat_leaves(self.params)
        tables = (leaf for path, leaf in leaves.items() if path.split("/")[0] in ("embed", "head"))
        padded = sum(leaf.size // columns for leaf in tables if columns in leaf.shape)
        return sum(leaf.size for leaf in leaves.values()) - padding * padded

    @property
    def mesh(self) -> Mesh | None:
        """The mesh that the parameters are spread over, if any."""
        return mesh_if_any(self.params)

    def on_mesh(self) -> contextlib.AbstractContextManager[None]:
        """The context to call the network in (`parallel.mesh.context_of`)."""
        return context_of(self.params)

    def placed(self, rows: ArrayLike) -> jax.Array:
        """`rows: [B, …]` split over the mesh if the mesh divides B, else replicated on every device."""
        if self.mesh is None:
            # `jnp.asarray` compiles a program for each shape (JAX 0.10).
            return jax.device_put(self.near(rows))
        whole = np.shape(rows)[0] % batch_pieces(self.mesh) != 0
        sharding = replicated(self.mesh) if whole else batch_sharding(self.mesh)
        if isinstance(rows, jax.core.Tracer):
            return jax.lax.with_sharding_constraint(rows, sharding)
        return place(np.asarray(rows), sharding)

    def near(self, x: Any) -> Any:
        """An array or key, moved to the model's devices and mesh from others, which JAX refuses."""
        there, here = _devices(x), _devices(self.params)
        if not there or (there == (here or there) and mesh_if_any(x) in (None, self.mesh)):
            return x
        with self.on_mesh():
            one = next(iter(here), jax.devices()[0])
            return place_whole(x, self.mesh or SingleDeviceSharding(one))

    @property
    @abc.abstractmethod
    def config(self) -> TransformerConfig:
        """The network's sizes."""

    @property
    @abc.abstractmethod
    def as_helper(self) -> Helper:
        """This model as the helper of another model's decoder."""

    @property
    def ends(self) -> tuple[int, int] | None:
        """BOS and EOS; None if neither a tokenizer nor a published config says which tokens they are."""
        if self.tokenizer is not None:
            return self.tokenizer.bos_id, self.tokenizer.eos_id
        found = self.facts.get("ends")
        return None if found is None else (found[0], found[1])

    @property
    def sequences(self) -> Sequences | None:
        """How the training sequences were packed; None if all positions see each other."""
        kind = self.facts.get("sequences", "packed")
        if self.ends is None or kind == "packed":
            return None
        return Sequences(kind, *self.ends, wrap=bool(self.facts.get("begins_with_bos")))

    @property
    def prompt_end(self) -> int | None:
        """BOS, the token between prompt and completion, for a model of instructions; None for any other."""
        found = self.sequences
        return found.bos_id if found is not None and found.kind == "prompted" else None

    @functools.cached_property
    def params_digest(self) -> str:
        """Digest of the checkpoint's parameters, without any that a variant of the model adds."""
        return self.facts.get("checkpoint_digest") or params_digest(self.params)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What identifies the model in results: path, kind, sizes and the parameters' digest; JSON-ready."""
        config, digest = to_mapping(self.config), self.params_digest
        if "variant" in self.facts:  # it gives other results from the same parameters
            digest = canonical_sha256([params_digest(self.params), self.facts["variant"]])
        return {
            "path": self.facts["path"],
            "kind": self.facts["kind"],
            "digest": digest,
            "compute_dtype": config["compute_dtype"],
            "config": config,
            "facts": {name: self.facts[name] for name in KNOWN if name in self.facts},
        }

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What determines the model's outputs: the parameters' digest and the activations' dtype.

        For GPT-2 and Llama networks, also their config, as it is in a file that users may edit.
        """
        found = {name: self.identity[name] for name in ("digest", "compute_dtype")}
        if isinstance(self.config, GPT2Config | LlamaConfig):
            found["config"] = canonical_sha256(self.identity["config"])
        return found

    @property
    def folder(self) -> Path | None:
        """The folder that holds the parameters; None if there is none, as for a repository of the hub."""
        place = self._place
        if not place.exists():
            return None
        return place if place.is_dir() else place.parent

    @property
    def _place(self) -> Path:
        path = as_path(self.facts["path"])
        return path if is_remote(path) else self.cwd / path

    @functools.cached_property
    def run_folder(self) -> Path | None:
        """The directory of the run that the model was trained in; None for models from elsewhere.

        A model belongs to a run only if it is where its stage writes it, not elsewhere in the run.

        Raises:
          CheckpointError: the model is in such a place, but was trained on other data than that run's.
        """
        if self.facts.get("stage") is None:
            return None
        for path in with_target(self._place):
            stage = path.parent
            # A distiller's round lies in RUN/DISTILLER/NUMBER; an SDTT round, in RUN/rounds/NUMBER.
            numbered = stage.name.isdigit()
            root = stage.parent.parent if numbered else stage.parent
            own = numbered or stage.name in ("teacher", "judge")
            if path.name == "final" and own and (root / "config.json").is_file():
                self._check_data(root)
                return root
        return None

    def _check_data(self, run: Path) -> None:
        info = run / "data" / "info.json"
        if "data" in self.facts and info.is_file():
            theirs = read_json(info, CheckpointError)["info"]["fingerprint"]
            if theirs != self.facts["data"]:
                raise CheckpointError(
                    f"{self.facts['path']} was trained on other data than its run {run} has; move it out of "
                    "that run, or restore the run's data."
                )

    @property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer; `CheckpointError` if there is none."""
        if self.tokenizer is None:
            own = isinstance(self.config, GPT2Config | LlamaConfig)
            remedy = (
                "no tokenizer.json is beside it; put the model's own there, or what the hub's libraries "
                "make of its tokenizer.model (AutoTokenizer, save_pretrained)."
                if own
                else "no tokenizer.json is beside it, and its vocabulary is not GPT-2's; export it from its "
                "run with --format=orbax."
            )
            raise CheckpointError(
                f"{self.facts['path']} has no tokenizer, so it can handle tokens but not text: {remedy}"
            )
        return self.tokenizer


def as_helper_of(helper: Loaded | Helper | None, model: Loaded) -> Helper | None:
    """The `Helper` of a loaded model, after checking that it suits `model`; others pass through.

    Raises:
      ConfigError: `helper` is anything else, such as a path; its parameters were put on other devices than
        the model's; its tokenizer contradicts the model's; or it was trained on other sequences than packed
        ones.
    """
    require(
        helper is None or isinstance(helper, Loaded | Helper),
        f"helper must be a model, as sdtt_jax.load returns it, not {helper!r:.80}.",
    )
    if helper is None:
        return None
    there, here = _devices(helper.params), _devices(model.params)
    require(
        not there or not here or there == here,
        f"The helper lies on other devices ({len(there)}) than {model.facts['path']} ({len(here)}); load "
        "both with the same mesh.",
    )
    if isinstance(helper, Helper):
        return helper
    sequences = helper.sequences
    # For the decoder's own model, `serving.begin` raises this error.
    require(
        sequences is None,
        f"The helper {helper.facts['path']} was trained with sequences={sequences and sequences.kind!r}; "
        "decoders need one that was trained on packed sequences.",
    )
    theirs, ours = helper.tokenizer, model.tokenizer
    require(
        theirs is None or ours is None or not _contradict(theirs, ours),
        f"The helper {helper.facts['path']} has another tokenizer (digest {theirs and theirs.digest[:12]}) "
        f"than {model.facts['path']} ({ours and ours.digest[:12]}), so that the same tokens are other texts; "
        "give a helper that was trained with the model's tokenizer.",
    )
    return helper.as_helper


def _devices(tree: Any) -> set[jax.Device]:
    """The devices that arrays were put on; none if JAX moves them to where the others are, or traces them."""
    leaf: Any = next(iter(jax.tree.leaves(tree)), None)
    put = not isinstance(leaf, jax.core.Tracer) and getattr(leaf, "committed", False)
    return leaf.sharding.device_set if put else set()


def same_ids(one: Tokenizer | None, other: Tokenizer | None) -> bool:
    """Whether the ids of two vocabularies stand for the same texts; True if one of them is not known."""
    if one is None or other is None or one.digest == other.digest:
        return True
    return one.vocab_size == other.vocab_size and not _contradict(one, other)


@functools.lru_cache(maxsize=8)  # a decoder may be called for each batch
def _contradict(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two vocabularies of one size give a token different texts; `serving.begin` compares sizes.

    Digests may differ although the tokens agree: a published denoiser's also depends on its id of MASK.
    """
    if one.digest == other.digest or one.vocab_size != other.vocab_size:
        return False
    ends, tokens = ((each.bos_id, each.eos_id) for each in (one, other)), range(one.vocab_size)
    return len(set(ends)) > 1 or one.pieces(tokens) != other.pieces(tokens)
