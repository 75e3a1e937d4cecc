"""How published networks slow down rotary embeddings for long texts, as read from configs and GGUF files."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.interchange.claims import NUMBER, require_one_value, sections
from sdtt_jax.interchange.renaming import Stored
from sdtt_jax.networks.attention.rotary import (
    LINEAR,
    LLAMA3,
    NO_SCALING,
    RotaryScaling,
    scaled_frequencies,
)
from sdtt_jax.networks.config import LlamaConfig

# The section of a config, in the hub's libraries up to version 4 and from 5 on.
SECTIONS = ("rope_scaling", "rope_parameters")
# Our field -> the hub's, for each kind.
FIELDS = {
    LINEAR: {"factor": "factor"},
    LLAMA3: {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_length": "original_max_position_embeddings",
    },
}
UNSCALED = ("default", "none")
# The tensor by which GGUF files of Llama 3.1 and later divide the frequencies.
GGUF_DIVISORS = "rope_freqs.weight"


def hub_scaling(stored: Stored) -> RotaryScaling:
    """The scaling that a hub config specifies.

    Raises:
      CheckpointError: it is of an unknown kind, lacks a number, or has numbers that make no scaling; or the
        config says two different ones.
    """
    found = [
        (section, _scaling(each, stored, section))
        for section in SECTIONS
        for said in sections(stored.content, section)
        if said
        # The hub's libraries also group them by the layers' kind of attention.
        for each in (_groups(said) or [said])
    ]
    require_one_value(stored, found)
    return found[0][1] if found else NO_SCALING


def _groups(said: Any) -> list[Mapping[str, Any]]:
    values = said.values() if isinstance(said, Mapping) else ()
    return [value for value in values if isinstance(value, Mapping)]


def gguf_scaling(stored: Stored) -> RotaryScaling:
    """The scaling that the metadata of a GGUF file specify; raises as `hub_scaling` does."""
    section = "rope.scaling"
    factor = stored.content.get(f"{section}.factor", stored.content.get("rope.scale_linear"))
    kind = stored.content.get(f"{section}.type", LINEAR if factor else UNSCALED[0])
    return _scaling({"type": kind, "factor": factor}, stored, section)


def gguf_divisors_scaling(
    divisors: np.ndarray, config: LlamaConfig, stored: Stored
) -> RotaryScaling:
    """The scaling of Llama 3.1 whose divisors of the frequencies a GGUF file stores.

    Args:
      divisors: `[pairs]` float32, the tensor `rope_freqs.weight`.
      config, stored: of the network.

    Raises:
      CheckpointError: the divisors are not those of Llama 3.1 and later (for any factor), or the config has a
        scaling already.
    """
    frequency = config.rotary_base ** (-np.arange(0, config.rotary_dim, 2) / config.rotary_dim)
    scaling = RotaryScaling(LLAMA3, factor=float(np.max(divisors, initial=1.0)))
    expected = frequency / np.asarray(scaled_frequencies(jnp.asarray(frequency), scaling))
    if config.rotary_scaling == NO_SCALING and divisors.shape == expected.shape:
        if np.allclose(divisors, 1.0):
            return NO_SCALING
        if np.allclose(divisors, expected, rtol=1e-4):
            return scaling
    raise CheckpointError(
        f"{stored.where}: {GGUF_DIVISORS} does not hold the factors of Llama 3.1 and later for "
        f"{len(frequency)} frequencies; others are not read from GGUF files: take the model's safetensors."
    )


def published_scaling(scaling: RotaryScaling) -> dict[str, Any]:
    """The fields of a hub config that specify a scaling; none if there is no scaling."""
    if scaling == NO_SCALING:
        return {}
    numbers = {theirs: getattr(scaling, ours) for ours, theirs in FIELDS[scaling.kind].items()}
    return {SECTIONS[0]: {"rope_type": scaling.kind, **numbers}}


def _scaling(said: Any, stored: Stored, section: str) -> RotaryScaling:
    where = stored.where
    if not isinstance(said, Mapping):
        raise CheckpointError(f"{where} says {section}={said!r}; it must be a group of fields.")
    name = "type" if said.get("rope_type") is None else "rope_type"
    kind: Any = said.get(name) or (None if "factor" in said else UNSCALED[0])
    if said.get("type") is not None:
        both = [(f"{section}.rope_type", kind), (f"{section}.type", said["type"])]
        require_one_value(stored, both)
    if kind in UNSCALED:
        return NO_SCALING
    if str(kind) not in FIELDS:
        raise CheckpointError(
            f"{where} says {section}.{name}={kind!r}; of the ways to scale rotations for long texts only "
            f"{' and '.join(FIELDS)} are known."
        )
    values: dict[str, Any] = {ours: said.get(theirs) for ours, theirs in FIELDS[kind].items()}
    for ours, value in values.items():
        if value is None or not NUMBER.accepts(value):
            raise CheckpointError(
                f"{where} says {section}.{FIELDS[kind][ours]}={value!r}; {kind!r} needs it as a number."
            )
    try:
        return RotaryScaling(kind, **values)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {section}: {error}") from None
