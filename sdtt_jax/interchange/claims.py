"""Checks the config of a published checkpoint against the network that its tensors are read as.

Related networks have tensors of the same names (SEDD, BD3-LM and MDLM share a transformer), and only the
config tells them apart. So a config that contradicts the recognised network is an error.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from sdtt_jax.config import from_mapping
from sdtt_jax.data.normalize import NORMALIZERS
from sdtt_jax.diffusion.schedule import SCHEDULES, ScheduleConfig, make_schedule
from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.interchange.renaming import Stored
from sdtt_jax.ops.sequence_kinds import KINDS

# Sections that describe how a network was trained, not the network itself.
ASIDE = (
    "callbacks",
    "checkpointing",
    "data",
    "data_preprocess",
    "eval",
    "hydra",
    "loader",
    "lr_scheduler",
    "noise",
    "optim",
    "sampling",
    "strategy",
    "tokenizer",
    "trainer",
    "training",
    "wandb",
)
Allowed = Mapping[str, tuple[Any, ...]]


class ValueKind(NamedTuple):
    """What the value of a field must be."""

    accepts: Callable[[Any], bool]
    words: str  # for errors


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


FLAG = ValueKind(lambda value: isinstance(value, bool), "true or false")
COUNT = ValueKind(lambda value: type(value) is int and value > 0, "a positive whole number")
TOKEN = ValueKind(lambda value: value is None or type(value) is int, "the number of a token")
NUMBER = ValueKind(lambda value: value is None or _is_number(value), "a number")
SEQUENCES = ValueKind(lambda value: value in KINDS, f"one of {', '.join(KINDS)}")
NORMALIZE = ValueKind(lambda value: value in [*NORMALIZERS], f"one of {', '.join(NORMALIZERS)}")
# What a model is a model of, by the names of its facts: the field in which a config says it.
TEXTS = {
    "sequences": ("sequences", SEQUENCES),
    "begins_with_bos": ("begins_with_bos", FLAG),
    "normalize": ("tokenizer_normalize", NORMALIZE),
    "every": ("skeleton_every", COUNT),
}
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_tanh")

# Synonyms in published configs.
LENGTHS = (
    "length",
    "model_length",
    "model.max_length",
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "seq_len",
    "seq_length",
    "context_length",
    "sequence_length",
)
MASKS = ("mask_token_id", "mask_id", "mask_index", "mask_idx", "mask_token_index")
# Fields that are true where a token sees only those before it, and where it sees all others. `is_decoder` is
# not among them: it is false by default in the hub's configs, of causal models too.
CAUSAL = ("causal", "causal_attention", "is_causal", "use_causal_mask")
BIDIRECTIONAL = (
    "bidirectional",
    "is_bidirectional",
    "bidirectional_attention",
    "use_bidirectional_attention",
)
# The section or field of the noise schedule, and the fields that name its kind in the section.
NOISE = ("noise", "noise_schedule")
KINDS_OF_NOISE = ("type", "kind", "schedule", "name", "noise_schedule")


def attention_claims(causal: bool) -> Allowed:
    """What a config may say of the attention of a network that is causal, or else bidirectional."""
    return dict.fromkeys(CAUSAL, (causal,)) | dict.fromkeys(BIDIRECTIONAL, (not causal,))


# What other networks do to logits and positions; here logits are not scaled, and rotations encode positions.
PLAIN_LOGITS: Allowed = {
    "logit_scale": (1,),
    "final_logit_softcapping": (),
    "final_logit_softcap": (),
    "logit_softcap": (),
    "logits_soft_cap": (),
    "output_logit_soft_cap": (),
    "attn_logit_softcapping": (),
    "attn_logit_softcap": (),
}
ROTATES: Allowed = {
    **dict.fromkeys(("rope", "use_rope", "use_rotary_embeddings"), (True,)),
    "position_embedding_type": ("rope", "rotary"),
}


def claims(content: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every field as `(dotted path, value)`: outermost, then in "model" and "config", then others."""
    sections = []
    for name, value in content.items():
        if not isinstance(value, Mapping):
            yield f"{path}{name}", value
        elif name not in ASIDE:
            sections.append((name, value))
    for name, section in sorted(sections, key=lambda item: item[0] not in ("model", "config")):
        yield from claims(section, f"{path}{name}.")


def claimed(stored: Stored, names: tuple[str, ...], kind: ValueKind, default: Any) -> Any:
    """The value of the fields with one of `names`, in any section; or `default` if there is none.

    A name may be dotted: `"model.max_length"` is the field `max_length` of a section `model`.

    Raises:
      CheckpointError: `kind` does not accept a value, or two fields contradict each other.
    """
    found = [(path, value) for path, value in claims(stored.content) if _is_named(path, names)]
    for path, value in found:
        if not kind.accepts(value):
            name = path.split(".")[-1]
            raise CheckpointError(f"{stored.where} says {name}={value!r}; it must be {kind.words}.")
    found = [(path, value) for path, value in found if value is not None]
    require_one_value(stored, found)
    return found[0][1] if found else default


def claimed_texts(stored: Stored) -> dict[str, Any]:
    """The facts in `TEXTS` that a config says; the others are unknown."""
    found = {fact: claimed(stored, (name,), kind, None) for fact, (name, kind) in TEXTS.items()}
    return {fact: value for fact, value in found.items() if value is not None}


def _is_named(path: str, names: tuple[str, ...]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def require_one_value(stored: Stored, found: list[tuple[str, Any]]) -> None:
    """Raises `CheckpointError` if fields that mean the same have different values."""
    for path, value in found[1:]:
        if value != found[0][1]:
            raise CheckpointError(
                f"{stored.where} says {found[0][0]}={found[0][1]!r}, but also {path}={value!r}: correct the "
                "one that is wrong."
            )


def published_schedule(stored: Stored) -> ScheduleConfig:
    """The noise schedule of a config, from its section "noise"; log-linear if there is none.

    Raises:
      CheckpointError: the config has such a section that does not name its schedule, names an unknown one or
        two, or has values that the schedule cannot have.
    """
    found, values = _said_of_noise(stored)
    kinds = {name.replace("-", ""): name for name in SCHEDULES}
    named = []
    for path, kind in found:
        name = kinds.get(str(kind).lower().replace("-", "").replace("_", ""))
        if name is None:
            raise CheckpointError(
                f"{stored.where} says {path}={kind!r}; it must be one of {', '.join(SCHEDULES)}."
            )
        named.append((path, name))
    require_one_value(stored, named)
    if not named:
        return ScheduleConfig()
    name = named[0][1]
    # Configs carry the bounds of every schedule along; only those that this one reads are taken.
    fields = ("sigma_min", "sigma_max") if name in ("linear", "geometric") else ("eps",)
    read = {field: values[field] for field in fields if field in values}
    try:
        config = from_mapping(ScheduleConfig, {"kind": name} | read, "noise")
        make_schedule(config)
        return config
    except ConfigError as error:
        raise CheckpointError(f"{stored.where}: {error}") from None


def _said_of_noise(stored: Stored) -> tuple[list[tuple[str, Any]], Mapping[str, Any]]:
    """The fields that name a config's noise schedule, as `(path, value)`, and the section that holds them."""
    found: list[tuple[str, Any]] = []
    values: Mapping[str, Any] = {}
    for section in NOISE:
        for noise in sections(stored.content, section):
            if not isinstance(noise, Mapping):
                found.append((section if section != NOISE[0] else f"{section}.type", noise))
                continue
            values = values or noise
            named = [field for field in KINDS_OF_NOISE if field in noise]
            if noise and not named:
                raise CheckpointError(
                    f"{stored.where} says {section}={dict(noise)!r}, without a type; it must be one of "
                    f"{', '.join(SCHEDULES)}."
                )
            found += [
                (f"{section}.{field}", noise[field]) for field in named if noise[field] is not None
            ]
    return found, values


def sections(content: Mapping[str, Any], name: str) -> Iterator[Any]:
    """The sections of a name at any depth, the outermost first."""
    if content.get(name) is not None:
        yield content[name]
    for section in content.values():
        if isinstance(section, Mapping):
            yield from sections(section, name)


def check_claims(stored: Stored, what: str, file: str, allowed: Allowed) -> None:
    """Checks that no field of a config contradicts a network.

    Args:
      stored: the config.
      what: the network, in words.
      file: the file of its tensors.
      allowed: maps a name to the values that a field of that name may have in any section, or the `name` or
        `type` of a section of that name. Case is ignored, and null counts as not given.

    Raises:
      CheckpointError: a field contradicts; names it, its value and the allowed values.
    """
    for path, value in claims(stored.content):
        name = _subject(path.split("."), allowed)
        if name is None or value is None:
            continue
        values, right = value if isinstance(value, list) else [value], allowed[name]
        if not all(_plain(each) in right for each in values):
            parts = path.split(".")
            said = ".".join(parts[parts.index(name) :])
            needed = " or ".join(map(repr, right)) or "none"
            raise CheckpointError(
                f"{stored.where} says {said}={value!r}, but the tensors of {file}, read as {what}, need "
                f"{needed}: they belong to a network that this library lacks, or to another config."
            )


def _subject(parts: list[str], allowed: Allowed) -> str | None:
    """The name in `allowed` that a field falls under: its own, or that of its section."""
    *sections, field = parts
    if field in allowed:
        return field
    named = next((name for name in sections if name in allowed), None)
    whole = named is not None and not allowed[named]
    return named if whole or (field in ("name", "type") and sections[-1:] == [named]) else None


def _plain(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value
