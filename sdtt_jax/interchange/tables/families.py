"""Which models of the Llama family are causal and which are denoisers, by what their configs say.

User, config and family are asked in this order. A field of the config counts more than the family: a
bidirectional network made from a causal one often keeps its `model_type`.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.claims import FLAG, MASKS, attention_claims, claimed, claims
from sdtt_jax.interchange.relatives import ORIGIN
from sdtt_jax.interchange.renaming import Stored
from sdtt_jax.networks.attention.rotary import ROTARY_BASE


class Family(NamedTuple):
    """Properties of the models of one `model_type`."""

    causal: bool  # they are causal models
    shift: bool = False  # as denoisers they predict the next token
    mask_id: int | None = None  # MASK, in their own numbering
    rotary_pairs: str = "halves"  # which features their rotations turn together: see `LlamaConfig`
    # What the hub's libraries take where a config does not say it.
    norm_epsilon: float = 1e-6
    rotary_base: float = ROTARY_BASE
    # `sliding_window`. Families without one ignore what a config says of it.
    window: int | None = None


FAMILIES = {
    "llama": Family(causal=True),
    "qwen2": Family(causal=True),
    "qwen3": Family(causal=True),
    "mistral": Family(causal=True, window=4096),
    "seed_oss": Family(causal=True),
    # Their configs have no field that says which features are turned together.
    "ernie4_5": Family(True, rotary_pairs="neighbours", norm_epsilon=1e-5, rotary_base=500_000.0),
    "helium": Family(True, rotary_pairs="neighbours", norm_epsilon=1e-8, rotary_base=100_000.0),
    # A masked language model: trained to predict masked tokens, as a denoiser is.
    "eurobert": Family(causal=False, norm_epsilon=1e-5),
    "dream": Family(causal=False, shift=True, mask_id=151_666),
    "llada": Family(causal=False, mask_id=126_336),
    "a2d-llama": Family(causal=False),
    "a2d-qwen2": Family(causal=False),
    "a2d-qwen3": Family(causal=False, mask_id=151_669),
}
# Classes of networks that are no causal models, by their names.
_DENOISER_CLASS = re.compile(r"bidirec|diffusion|mask|denois|encoder|mdlm", re.IGNORECASE)


def family_of(content: Mapping[str, Any]) -> Family | None:
    """The family that a config names; None if it is not known."""
    return FAMILIES.get(str(content.get("model_type")).lower())


def signs_of_a_denoiser(stored: Stored) -> list[str]:
    """What a config says that no causal model's does, as `name=value`; none where it says that it is one."""
    attention, signs = attention_claims(causal=True), []
    # Only exports have a length, and those of denoisers a shift too: one without was read as a causal model.
    exported = "length" in stored.content and "shift" not in stored.content
    masks = () if exported else MASKS
    for path, value in claims(stored.content):
        name = path.split(".")[-1]
        if value is None:
            continue
        if name in attention and value in attention[name]:
            return []
        other_class = name == "architectures" and _DENOISER_CLASS.search(str(value))
        if name in attention or name in masks or other_class:
            signs.append(f"{name}={value!r}")
    return signs


def is_causal(family: Family | None, stored: Stored) -> bool:
    """Whether a network is causal, according to user, config and family.

    If the family is not known (None), the user specifies `causal` or `mask_id`.
    """
    given = stored.given
    if given.causal is not None:
        return given.causal
    if family is None:
        return given.mask_id is None
    return family.causal and not signs_of_a_denoiser(stored)


def shift_of(family: Family | None, stored: Stored) -> bool:
    """Whether a denoiser predicts the next token, according to user, config and family.

    Raises:
      CheckpointError: none of them says it. A family of causal models does not, where only the config says
        that the network is a denoiser.
    """
    given, said = stored.given, claimed(stored, ("shift",), FLAG, None)
    by_config = given.causal is None and family is not None and family.causal
    known = (given.shift, said, None if by_config else family and family.shift)
    shift = next((value for value in known if value is not None), None)
    if shift is not None:
        return shift
    if by_config:
        kind, signs = stored.content.get("model_type"), ", ".join(signs_of_a_denoiser(stored))
        raise CheckpointError(
            f"{stored.where} says model_type={stored.content.get(ORIGIN, kind)!r}, whose networks are "
            f"causal, but also {signs}: pass causal=True for a causal model, or causal=False with mask_id "
            "and shift for a denoiser."
        )
    raise CheckpointError(
        f"{stored.where} does not say where the denoiser predicts a token: pass shift=False for the "
        "token's own position, or shift=True for the one before it."
    )
