"""How sequences are packed. Imports no JAX, for which every process that prepares data would have to wait."""

import dataclasses

from sdtt_jax.config import one_of, require, whole

# The stream of all texts cut to length; the same with attention confined to each text; one text per sequence,
# with padding; the same with a prompt at the beginning.
KINDS = ("packed", "documents", "padded", "prompted")


@dataclasses.dataclass(frozen=True)
class Sequences:
    """How sequences were packed."""

    kind: str = "packed"  # one of `KINDS`
    # bos_id, eos_id: ids of the vocabulary; they may be the same.
    bos_id: int = 0
    eos_id: int = 0
    wrap: bool = False  # every sequence is `[BOS] chunk [EOS]`; only for "packed" and "documents"

    def __post_init__(self) -> None:
        one_of(self, kind=KINDS)
        whole(0, self, "bos_id", "eos_id")
        require(
            not (self.wrap and self.has_padding),
            "wrap=True puts BOS and EOS around chunks of many texts, but sequences of the kind "
            f"{self.kind!r} have one text each; set wrap=False.",
        )

    @property
    def has_padding(self) -> bool:
        """Whether a sequence holds one text and padding, not a piece of the stream of all texts."""
        return self.kind in ("padded", "prompted")
