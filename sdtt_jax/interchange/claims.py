"""Checks the config of a published checkpoint against the network that its tensors are read as.

Related networks have tensors of the same names (SEDD, BD3-LM and MDLM share a transformer), and only the
config tells them apart. So a config that contradicts the recognised network is an error.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from sdtt_jax.config import from_mapping
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
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_tanh")


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
    """The value of the first field with one of `names`, in any section, checked by `kind`; or `default`."""
    for path, value in claims(stored.content):
        name = path.split(".")[-1]
        if name in names and not kind.accepts(value):
            raise CheckpointError(f"{stored.where} says {name}={value!r}; it must be {kind.words}.")
        if name in names:
            return value
    return default


def published_schedule(stored: Stored) -> ScheduleConfig:
    """The noise schedule of a config, from its section "noise"; log-linear if there is none.

    Raises:
      CheckpointError: the config names an unknown schedule, or values that the schedule cannot have.
    """
    noise: Any = next(_sections(stored.content, "noise"), {})
    kind = noise.get("type", noise.get("kind")) if isinstance(noise, Mapping) else noise
    if kind is None:
        return ScheduleConfig()
    kinds = {name.replace("-", ""): name for name in SCHEDULES}
    name = kinds.get(str(kind).lower().replace("-", "").replace("_", ""))
    if name is None:
        raise CheckpointError(
            f"{stored.where} says noise.type={kind!r}; it must be one of {', '.join(SCHEDULES)}."
        )
    # Configs carry the bounds of every schedule along; only those that this one reads are taken.
    fields = ("sigma_min", "sigma_max") if name in ("linear", "geometric") else ("eps",)
    values = {
        field: noise[field] for field in fields if isinstance(noise, Mapping) and field in noise
    }
    try:
        config = from_mapping(ScheduleConfig, {"kind": name} | values, "noise")
        make_schedule(config)
        return config
    except ConfigError as error:
        raise CheckpointError(f"{stored.where}: {error}") from None


def _sections(content: Mapping[str, Any], name: str) -> Iterator[Any]:
    """The sections of a name at any depth, the outermost first."""
    if content.get(name) is not None:
        yield content[name]
    for section in content.values():
        if isinstance(section, Mapping):
            yield from _sections(section, name)


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
