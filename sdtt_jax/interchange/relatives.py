"""Networks that become Llamas: the tensors of Phi-3 are cut, and those of Granite multiplied by its factors.

The rewritten model is what the rest of this library sees, also when it is exported.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.claims import COUNT, FLAG, NUMBER, ValueKind, claimed
from sdtt_jax.interchange.renaming import Stored, shape_of

# The field of a rewritten config that says what the network was published as.
ORIGIN = "rewritten_from"
HEADS = ValueKind(lambda value: value is None or COUNT.accepts(value), COUNT.words)


class Part(NamedTuple):
    """Where a rewritten tensor comes from."""

    name: str  # of the published tensor
    rows: slice = slice(None)  # its rows that are taken
    total: int | None = None  # all that it must have; None: any number
    factor: float = 1.0  # which they are multiplied by


class Rewritten(Mapping[str, np.ndarray]):
    """Tensors made from those of a file, each when it is asked for; what is multiplied becomes float32."""

    def __init__(self, source: Mapping[str, np.ndarray], parts: Mapping[str, Part], file: str):
        self._source, self._parts, self._file = source, parts, file

    def __getitem__(self, name: str) -> np.ndarray:
        published, rows, total, factor = self._parts[name]
        array = self._source[published]
        if total not in (None, len(array)):
            raise CheckpointError(
                f"{self._file}: {published} has {len(array)} rows, but that of another layer {total}."
            )
        array = array[rows]
        return array if factor == 1 else array.astype(np.float32) * np.float32(factor)

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def dtypes(self) -> dict[str, str]:
        """The dtype of each tensor."""
        stored: Mapping[str, str] = self._source.dtypes  # type: ignore[attr-defined]
        return {n: stored[p.name] if p.factor == 1 else "F32" for n, p in self._parts.items()}


def as_llama(
    tensors: Mapping[str, np.ndarray], stored: Stored, file: str
) -> tuple[Mapping[str, np.ndarray], Stored]:
    """A relative's tensors and config as those of a network of the Llama family; others as they are.

    Raises:
      CheckpointError: a tensor of the relative is missing, or its config lacks a size; names the `file`.
    """
    rewrite = RELATIVES.get(str(stored.content.get("model_type")).lower())
    if rewrite is None:
        return tensors, stored
    parts, content = rewrite(tensors, stored, file)
    return Rewritten(tensors, parts, file), stored._replace(content=content)


def _phi3(
    tensors: Mapping[str, np.ndarray], stored: Stored, file: str
) -> tuple[dict[str, Part], dict[str, Any]]:
    """Phi-3 and Phi-4: query, key and value are one map, and so are the gate and what it multiplies."""
    heads = claimed(stored, ("num_attention_heads",), HEADS, None)
    if heads is None:
        raise CheckpointError(f"{stored.where}: field 'num_attention_heads' is missing.")
    kv_heads = claimed(stored, ("num_key_value_heads",), HEADS, heads)
    # The maps within a fused one, and how many heads, or halves, each has.
    fused = {
        "qkv_proj": {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads},
        "gate_up_proj": {"gate_proj": 1, "up_proj": 1},
    }
    parts, sizes = {}, {}
    for name in tensors:
        found = re.fullmatch(rf"(.*\.)({'|'.join(fused)})(\.\w+)", name)
        if found is None:
            parts[name] = Part(name)
            continue
        before, which, behind = found.groups()
        shares = fused[which]
        if which not in sizes:  # only one tensor of each kind is read here
            rows, maps = shape_of(tensors, name, file)[0], sum(shares.values())
            if rows % maps:
                raise CheckpointError(
                    f"{file}: {name} has {rows} rows, which cannot be those of {maps} "
                    f"{'heads' if which == 'qkv_proj' else 'maps'} of one size."
                )
            sizes[which] = rows // maps
        first, total = 0, sizes[which] * sum(shares.values())
        for part, count in shares.items():
            stop = first + count * sizes[which]
            parts[f"{before}{part}{behind}"] = Part(name, slice(first, stop), total)
            first = stop
    # Mistral is a Llama whose config may limit attention to a window, as Phi-3's does.
    window = {"sliding_window": stored.content.get("sliding_window")}
    said = {"rms_norm_eps": 1e-5} | dict(stored.content)
    return parts, _called("Mistral", said | window)


def _granite(
    tensors: Mapping[str, np.ndarray], stored: Stored, file: str
) -> tuple[dict[str, Part], dict[str, Any]]:
    """Granite without experts: a Llama with factors on embeddings, attention, residuals and logits."""
    names = "embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"
    said = {name: claimed(stored, (name,), NUMBER, 1.0) for name in names}
    for name, value in said.items():
        if not 0 < value < math.inf:
            raise CheckpointError(f"{stored.where} says {name}={value!r}; it must be positive.")
    embedding, attention, residual, logits = said.values()
    heads = claimed(stored, ("num_attention_heads",), HEADS, 1)
    query = shape_of(tensors, "model.layers.0.self_attn.q_proj.weight", file)[0]
    tied = claimed(stored, ("tie_word_embeddings",), FLAG, "lm_head.weight" not in tensors)
    factors = {
        "embed_tokens": embedding,
        # A tied head is the embedding with its factor, which the last norm then divides by.
        "lm_head": embedding if tied else 1.0,
        "model.norm": 1 / (logits * (embedding if tied else 1.0)),
        # The network divides by the root of a head's size.
        "q_proj": attention * math.sqrt(query / heads),
        "o_proj": residual,
        "down_proj": residual,
    }
    parts = {}
    for name in tensors:
        module = name.rpartition(".")[0]
        factor = next((x for end, x in factors.items() if module.endswith(end)), 1.0)
        parts[name] = Part(name, factor=factor)
    content = {name: value for name, value in stored.content.items() if name not in names}
    return parts, _called("Llama", content)


def _called(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the name of another family, for this library and for the hub's."""
    said = {field: value for field, value in content.items() if field != "auto_map"}
    found = said.get("architectures")
    if isinstance(found, list) and len(found) == 1:
        # A class for denoisers keeps its name, by which it is told from the causal model.
        said["architectures"] = [re.sub(r"^\w+(?=ForCausalLM$)", name, str(found[0]))]
    return said | {"model_type": name.lower(), ORIGIN: content["model_type"]}


RELATIVES = {"phi3": _phi3, "granite": _granite}
